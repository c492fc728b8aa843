"""The delimiter format and every reason against a triplet."""

from __future__ import annotations

from typing import get_args

import pytest

from ip2p.config import DEFAULT_EDIT_TYPE_RULES, ScreeningConfig
from ip2p.prompts.format import REASONS, Reason, format_answer, format_prompt, name_edit_type, parse_answer
from ip2p.prompts.screening import Screen, is_no_op
from ip2p.records import EditTriplet


def triplet(original: str, edit: str, edited: str) -> EditTriplet:
    return EditTriplet(original_prompt=original, edit_prompt=edit, edited_prompt=edited)


def test_the_format_is_the_one_of_the_paper_s_code() -> None:
    assert format_prompt("a cat") == "a cat\n##\n"
    assert format_answer("make it a dog", "a dog") == "make it a dog\n%%\na dog\nEND"


def test_a_well_formed_answer_is_read_back_and_what_follows_the_stop_is_ignored() -> None:
    assert parse_answer(format_answer(" make it a dog ", "a dog ") + " and so on\n%%\n") == ("make it a dog", "a dog")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "make it a dog\n%%\na dog",  # no stop
        "make it a dog\nEND",  # one part
        "make it\n%%\na dog\n%%\na cat\nEND",  # three parts
        "\n%%\na dog\nEND",  # empty instruction
        "make it a dog\n%%\n  \nEND",  # empty caption
        "make it a dog %% a dog\nEND",  # delimiter without its lines
        "make it\na dog\n%%\na dog\nEND",  # instruction of two lines
        "make it a dog\n%%\na dog\n##\na cat\nEND",  # a second prompt inside
    ],
)
def test_any_other_answer_is_unparsable(answer: str) -> None:
    assert parse_answer(answer) is None


def test_case_and_final_marks_make_no_edit() -> None:
    assert is_no_op("A cat.", " a cat! ")
    assert not is_no_op("a cat", "a cat on a mat")


def test_the_first_reason_that_holds_is_given() -> None:
    screen = Screen(ScreeningConfig(), fits=lambda text: len(text) <= 10)
    good = triplet("a cat", "a dog now", "a dog")
    assert screen.judge(good) == ""
    assert screen.judge(good) == "duplicate"
    assert screen.judge(triplet("a cat", "same", "A cat")) == "no_op"
    for field in ("original_prompt", "edit_prompt", "edited_prompt"):
        texts = {"original_prompt": "a", "edit_prompt": "b", "edited_prompt": "c", field: "x" * 11}
        assert screen.judge(EditTriplet(**texts)) == "too_long"


@pytest.mark.parametrize(
    ("instruction", "edit_type"),
    [
        ("Add a hat", "add"),
        ("remove the red hat", "remove"),
        ("swap the cat for a dog", "replace"),
        ("Make the BACKGROUND green", "background"),
        ("make it snowy", "weather"),
        ("as a watercolour", "style"),
        ("paint it black", "colour"),
        ("have it dance", "other"),
    ],
)
def test_the_instruction_names_its_type(instruction: str, edit_type: str) -> None:
    assert name_edit_type(instruction, DEFAULT_EDIT_TYPE_RULES) == edit_type


def test_a_rule_that_is_no_regular_expression_is_a_user_s_mistake() -> None:
    with pytest.raises(ValueError, match=r"edit_type_rules.*'\('"):
        name_edit_type("add a hat", (("(", "add"),))


def test_every_reason_has_words() -> None:
    assert set(get_args(Reason)) - {""} == set(REASONS)
