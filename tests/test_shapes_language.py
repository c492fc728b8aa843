"""Words of the domain: what is said is read back, and an instruction words exactly the step between two captions."""

from __future__ import annotations

import random

import pytest

from ip2p.presets import shapes
from ip2p.prompts import name_edit_type
from ip2p.shapes.language import (
    CAPTION_TEMPLATES,
    EDIT_TYPES,
    INSTRUCTIONS,
    Described,
    caption,
    describe,
    draw_caption,
    draw_edit,
    draw_edit_of,
    find_step,
    parse_caption,
    read_edit,
)
from ip2p.shapes.scene import draw_moved, draw_scene

TWO = Described("pink", (("small", "red", "circle"), ("large", "blue", "star")))


def test_every_caption_is_read_back_in_every_phrasing() -> None:
    rng = random.Random(1)
    for _ in range(300):
        described = describe(draw_scene(rng))
        for phrasing in range(len(CAPTION_TEMPLATES[len(described.objects)])):
            assert parse_caption(caption(described, phrasing)) == described


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a small red circle",
        "a small red circle on a red background",
        "a small red circle on a pink background today",
        "a small red circle and a large red star on a pink background",
        "a small red circle and a large blue circle on a pink background",
        "a tiny red circle on a pink background",
    ],
)
def test_what_the_grammar_cannot_say_is_not_read(text: str) -> None:
    assert parse_caption(text) is None


@pytest.mark.parametrize("edit_type", EDIT_TYPES)
def test_an_edit_changes_one_thing_and_its_instruction_says_which(edit_type: str) -> None:
    rng, wordings = random.Random(2), set()
    for _ in range(100):
        edit = draw_edit(rng, edit_type=edit_type)
        before, after = describe(edit.original), describe(edit.edited)
        step = find_step(before, after)
        assert step is not None and (step.kind == edit_type or edit_type == "replace")
        assert read_edit(caption(before, 1), edit.edit_prompt, caption(after, 1))
        untouched = [thing for thing in edit.original.objects if thing in edit.edited.objects]
        assert len(untouched) >= len(edit.original.objects) - 1
        wordings.add(edit.edit_prompt)
    assert len(INSTRUCTIONS[edit_type]) >= 3 and len(wordings) > 20


def test_an_instruction_for_another_step_is_not_consistent() -> None:
    before = caption(TWO)
    after = caption(Described("pink", (("small", "green", "circle"), ("large", "blue", "star"))))
    assert read_edit(before, "make the circle green", after)
    assert not read_edit(before, "make the star green", after)
    assert not read_edit(before, "make the circle red", after)
    assert not read_edit(before, "make the circle green", before)
    assert not read_edit(before, "make the circle green", "a green circle")


def test_two_changes_at_once_are_no_single_step() -> None:
    other = Described("lime", (("small", "green", "circle"), ("large", "blue", "star")))
    assert find_step(TWO, other) is None and find_step(TWO, TWO) is None


def test_a_scene_without_room_for_an_edit_gets_another_one_and_still_one() -> None:
    rng = random.Random(3)
    for _ in range(50):
        scene = draw_scene(rng, num_objects=2)
        assert draw_edit_of(rng, scene, "add").edit_type != "add"


def test_a_moved_scene_says_the_same_at_other_places() -> None:
    rng = random.Random(4)
    scene = draw_scene(rng, num_objects=2)
    moved = draw_moved(rng, scene)
    assert describe(moved) == describe(scene) and moved != scene


def test_the_presets_rules_name_the_type_of_every_instruction() -> None:
    rng, rules = random.Random(5), shapes().prompts.edit_type_rules
    for _ in range(700):
        edit = draw_edit(rng)
        assert name_edit_type(edit.edit_prompt, rules) == edit.edit_type, edit.edit_prompt


def test_a_phrasing_drawn_by_chance_covers_all() -> None:
    rng = random.Random(6)
    scene = draw_scene(rng, num_objects=1)
    assert len({draw_caption(rng, scene) for _ in range(200)}) == len(CAPTION_TEMPLATES[1])
