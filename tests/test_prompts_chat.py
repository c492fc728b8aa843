"""The chat backend against a real model with a chat template that was taught a few conversations."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ip2p.config import PipelineConfig, PromptsConfig
from ip2p.prompts import read_triplets, write_shard
from ip2p.prompts.asking import Answer, Request, draw_edit_type, draw_examples, messages_for, read_examples
from ip2p.prompts.backends import open_backend
from ip2p.prompts.format import format_json, parse_json
from ip2p.prompts.shards import read_answer, try_caption
from ip2p.store import RunFolder
from tests.trained_models import TRAINED_CAPTIONS, chat_config

pytestmark = pytest.mark.xdist_group("trained_models")
REQUESTS = [Request(caption, attempt) for caption in TRAINED_CAPTIONS for attempt in range(3)]


def ask(config: PromptsConfig, requests: list[Request] = REQUESTS) -> list[Answer]:
    return open_backend(config, Path("unused")).answer(requests, on_answer=lambda num: None)


@pytest.mark.slow
def test_the_trained_model_gives_the_edit_types_that_it_is_asked_for(trained_chat: Path) -> None:
    config = chat_config(trained_chat)
    for request, answer in zip(REQUESTS, ask(config), strict=True):
        triplet = read_answer(config, request, answer, "chat-model").triplet
        assert triplet is not None, answer
        assert triplet.edit_type == draw_edit_type(config, request)
        assert triplet.edited_prompt == f"{request.caption}, {triplet.edit_type}"


def test_an_answer_in_prose_is_mended_once_and_only_where_that_is_wanted(trained_chat: Path) -> None:
    config = chat_config(trained_chat)
    mended = ask(config)[0]
    assert mended.earlier == ("Sure!",) and not isinstance(parse_json(mended.text, ["colour", "add", "remove"]), str)
    unmended = replace(config, num_repairs=0)
    assert ask(unmended)[0] == Answer("Sure!")
    assert read_answer(unmended, REQUESTS[0], Answer("Sure!"), "").reason == "unparsable"


@pytest.mark.parametrize("batch_size", [1, 5])
def test_answers_do_not_depend_on_the_batch(trained_chat: Path, batch_size: int) -> None:
    config = replace(chat_config(trained_chat), temperature=2.0, batch_size=50)
    answers = ask(config)
    assert ask(replace(config, batch_size=batch_size)) == answers
    assert ask(config, REQUESTS[::-2]) == answers[::-2]


def test_a_shard_is_written_with_a_chat_model(trained_chat: Path, tiny_config: PipelineConfig, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("\n".join(TRAINED_CAPTIONS))
    asked = replace(chat_config(trained_chat), captions=str(tmp_path / "captions.txt"), max_prompt_tokens=200)
    config = replace(tiny_config, prompts=replace(asked, num_triplets_per_caption=3))
    assert write_shard(config, 0).counts == {"captions": 4, "generations": 12, "kept": 12}
    triplets = read_triplets(RunFolder(config.out).shard("triplets", 0))
    assert {triplet.source for triplet in triplets} == {"chat-model"}
    assert Counter(triplet.edit_type for triplet in triplets) == {"colour": 4, "add": 4, "remove": 4}
    assert [found.triplet for found in try_caption(config, f" {TRAINED_CAPTIONS[0]} ", 3)] == triplets[:3]


def test_a_model_without_a_chat_template_is_a_mistake(tiny_lm: Path) -> None:
    with pytest.raises(ValueError, match=r"has no chat template.*prompts\.backend to causal_lm"):
        ask(replace(chat_config(tiny_lm), device="cpu"))


def test_edit_types_follow_their_weights_and_a_caption_gets_each_once() -> None:
    config = PromptsConfig(edit_types=(("often", 3.0), ("seldom", 1.0), ("never", 0.0)))
    drawn = Counter(draw_edit_type(config, Request(f"caption {number}", 0)) for number in range(4000))
    assert drawn["often"] / 4000 == pytest.approx(0.75, abs=0.03) and drawn["never"] == 0
    for caption in ("a cat", "a dog"):
        assert {draw_edit_type(config, Request(caption, attempt)) for attempt in range(2)} == {"often", "seldom"}


def test_examples_are_of_the_asked_type_differ_by_caption_and_are_fixed_by_hash() -> None:
    config = PromptsConfig()
    shown = [draw_examples(config, Request(f"caption {number}", 0), "weather") for number in range(20)]
    assert {example.edit_type for examples in shown for example in examples} == {"weather"}
    assert len({tuple(each.id for each in examples) for examples in shown}) == 20
    assert shown[0] == draw_examples(config, Request("caption 0", 0), "weather")
    seed = read_examples("")[0]
    assert seed not in draw_examples(replace(config, num_examples=760), Request(seed.original_prompt, 0), "add")


def test_the_conversation_ends_with_the_caption_and_its_examples_are_answers_as_asked() -> None:
    config = PromptsConfig()
    talk = messages_for(config, Request('a "quoted" cat', 0))
    assert [each["role"] for each in talk] == ["system", *["user", "assistant"] * 4, "user"]
    assert 'Caption: "a \\"quoted\\" cat"' in talk[-1]["content"]
    types = [name for name, _ in config.edit_types]
    for each in talk[2:-1:2]:
        assert not isinstance(parse_json(each["content"], types), str)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_json("add", "add a hat", "a cat in a hat"), ("add", "add a hat", "a cat in a hat")),
        ("```json\n" + format_json("add", "é", "b") + "\n```", ("add", "é", "b")),
        ("Here: " + format_json("add", "a", "b"), "unparsable"),
        (format_json("add", "a", "b") + format_json("add", "a", "b"), "unparsable"),
        ('{"edit_type": "add", "edit_prompt": "a"}', "unparsable"),
        ('{"edit_type": "add", "edit_prompt": "a", "edited_prompt": "b", "more": 1}', "unparsable"),
        ("[1]", "unparsable"),
        ("[" * 100_000, "unparsable"),
        ("", "unparsable"),
        ('{"edit_type": "add", "edit_prompt": 3, "edited_prompt": "b"}', "wrong_types"),
        ('{"edit_type": "add", "edit_prompt": ["a"], "edited_prompt": "b"}', "wrong_types"),
        (format_json("add", "  ", "b"), "wrong_types"),
        (format_json("add", "a\nb", "b"), "wrong_types"),
        (format_json("dance", "a", "b"), "wrong_types"),
    ],
)
def test_one_json_object_of_three_texts_is_an_answer_and_nothing_else(text: str, expected: object) -> None:
    assert parse_json(text, ["add", "remove"]) == expected


def test_examples_that_are_no_triplets_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompts\.examples .* is not a \.jsonl file"):
        read_examples(str(tmp_path / "none.jsonl"))
    (tmp_path / "broken.jsonl").write_text('{"original_prompt": "a"}')
    with pytest.raises(ValueError, match=r"line 1 is not a triplet: edit_prompt is missing"):
        read_examples(str(tmp_path / "broken.jsonl"))
