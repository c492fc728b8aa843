"""Every reason against a triplet, near-duplicates against brute force, and shards in any order."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ip2p import store
from ip2p.config import PipelineConfig, ScreeningConfig
from ip2p.prompts import num_shards, write_shard
from ip2p.prompts.asking import read_examples
from ip2p.prompts.captions import reads_as_english
from ip2p.prompts.screening import Screen, WordIndex, agrees, likeness, refers_to_the_change, words_of
from ip2p.records import EditTriplet
from ip2p.shapes.language import SceneEdit, caption, describe, draw_edit
from ip2p.shapes.scene import Scene
from tests.test_prompts import path_of, rows_of, with_prompts, write_all


def triplet(original: str = "a cat", edit: str = "make it a dog", edited: str = "a dog") -> EditTriplet:
    return EditTriplet(original_prompt=original, edit_prompt=edit, edited_prompt=edited)


def reason(judged: EditTriplet, **settings: Any) -> str:
    return Screen(ScreeningConfig(**settings), lambda text: True).judge(judged)


def is_rude(text: str) -> bool:
    return "rude" in text


def test_nothing_is_asked_by_default() -> None:
    assert reason(triplet("un chat noir sur le toit", "x", "der Hund")) == ""


@pytest.mark.parametrize(
    ("judged", "settings", "expected"),
    [
        (triplet(edited="a Gun dog"), {"banned_words": ("gun",)}, "banned"),
        (triplet(edited="a begun dog"), {"banned_words": ("gun",)}, ""),
        (triplet(edited="a dog. (x)"), {"banned_words": ("(x",)}, ""),
        (triplet(edit="be rude"), {"moderation": f"{__name__}:is_rude"}, "moderated"),
        (triplet(), {"moderation": f"{__name__}:is_rude"}, ""),
        (triplet(edited="un chien dans le jardin"), {"language": "en"}, "language"),
        (triplet(edit="add a hat", edited="a dog"), {"check_agreement": True}, "disagreement"),
        (triplet("a foggy day", "lift the fog", "a clear day"), {"check_agreement": True}, ""),
        (
            triplet("a red cat and a blue dog", "paint the cat black", "a red cat and a black dog"),
            {"check_reference": True},
            "other_reference",
        ),
        (
            triplet("a red cat and a blue dog", "paint the dog black", "a red cat and a black dog"),
            {"check_reference": True},
            "",
        ),
        (
            triplet("a red cat and a blue dog", "paint the cat black", "a black cat and a white dog"),
            {"check_reference": True},
            "other_reference",
        ),
        (triplet("a cat, a dog", "add snow", "a cat, a dog in the snow"), {"check_reference": True}, ""),
        (triplet("a cat, a dog", "remove the cat", "a cat"), {"check_reference": True}, "other_reference"),
        (triplet("A cat, sitting!", "x", "a  CAT sitting"), {}, "no_op"),
    ],
)
def test_each_reason(judged: EditTriplet, settings: dict[str, Any], expected: str) -> None:
    assert reason(judged, **settings) == expected


def test_the_seeds_agree_with_their_instructions_and_not_with_another_s() -> None:
    seeds = read_examples("")
    others = [replace(each, edit_prompt=other.edit_prompt) for each, other in zip(seeds, seeds[1:], strict=False)]
    assert sum(map(agrees, seeds)) / len(seeds) > 0.97
    assert sum(map(agrees, others)) / len(others) < 0.04


def test_the_seeds_name_what_they_change_and_a_mixed_up_language_model_does_not() -> None:
    assert sum(map(refers_to_the_change, read_examples(""))) / len(read_examples("")) > 0.88
    rng = random.Random(0)
    edits = [draw_edit(rng, edit_type="colour") for _ in range(400)]
    crowded = [edit for edit in edits if len(edit.original.objects) == 2]
    right = [triplet(words(edit.original), edit.edit_prompt, words(edit.edited)) for edit in crowded]
    mixed_up = [triplet(words(edit.original), edit.edit_prompt, words(paint_the_other(edit))) for edit in crowded]
    assert sum(map(refers_to_the_change, right)) / len(right) > 0.97
    assert sum(map(refers_to_the_change, mixed_up)) / len(mixed_up) < 0.2


def words(scene: Scene) -> str:
    return caption(describe(scene))


def paint_the_other(edit: SceneEdit) -> Scene:
    """Gives the object that the instruction does not name the new colour."""
    (changed,) = (k for k in range(2) if edit.edited.objects[k] != edit.original.objects[k])
    other = replace(edit.original.objects[1 - changed], colour=edit.edited.objects[changed].colour)
    return edit.original.with_object(1 - changed, other)


def test_the_seeds_read_as_english_and_other_languages_do_not() -> None:
    assert all(
        reads_as_english(each.original_prompt) and reads_as_english(each.edited_prompt) for each in read_examples("")
    )
    others = (
        "ein Hund im Park mit rotem Ball",
        "un chat noir sur le toit",
        "犬が公園を走る",
        "кошка на крыше",
        "12 / 34",
    )
    assert not any(map(reads_as_english, others))


def test_a_moderation_that_cannot_be_imported_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no_such:thing cannot be imported"):
        reason(triplet(), moderation="no_such:thing")
    with pytest.raises(ValueError, match="written module:function"):
        ScreeningConfig(moderation="no function")


def drawn_triplets(num: int) -> list[EditTriplet]:
    """Some are new; most say one of those before them again with some words put differently."""
    rng, words = random.Random(0), [f"w{number}" for number in range(90, 120)]
    drawn: list[list[list[str]]] = []
    for _ in range(num):
        if not drawn or rng.random() < 0.3:
            drawn.append([rng.choices(words, k=rng.randint(1, 9)) for _ in range(3)])
            continue
        share = rng.random() / 2
        drawn.append([[rng.choice(words) if rng.random() < share else w for w in t] for t in rng.choice(drawn)])
    return [triplet(*map(" ".join, each)) for each in drawn]


@pytest.mark.parametrize("limit", [0.3, 0.5, 0.7, 0.9, 1.0])
def test_the_index_finds_just_what_comparing_all_with_all_finds(limit: float) -> None:
    index, kept = WordIndex(limit), list[EditTriplet]()
    for each in drawn_triplets(400):
        expected = any(likeness(words_of(each), words_of(other)) >= limit for other in kept)
        assert index.has_similar(each) == expected
        if not expected:
            index.add(each)
            kept.append(each)
    assert len(index) == len(kept) < 400


def as_lines(triplets: list[EditTriplet]) -> str:
    names = ("original_prompt", "edit_prompt", "edited_prompt")
    return "\n".join(json.dumps({name: getattr(each, name) for name in names}) for each in triplets)


@pytest.fixture
def config(tiny_config: PipelineConfig, tmp_path: Path) -> PipelineConfig:
    path = tmp_path / "ready.jsonl"
    path.write_text(as_lines(drawn_triplets(60)))
    screening = ScreeningConfig(near_duplicate=0.5)
    return with_prompts(tiny_config, captions=str(path), shard_size=7, max_prompt_tokens=1000, screening=screening)


def test_words_about_another_picture_are_no_near_duplicate() -> None:
    screen = Screen(ScreeningConfig(near_duplicate=0.5), lambda text: True)
    kept, again, other = (replace(triplet(), picture=picture, edit_type="") for picture in ("1", "1", "2"))
    again = replace(again, edit_prompt="make it one dog")
    assert [screen.judge(each) for each in (kept, again, other)] == ["", "near_duplicate", ""]


def test_near_duplicates_are_found_across_shards_and_the_shard_size_changes_none(
    config: PipelineConfig, tmp_path: Path
) -> None:
    rows = write_all(config)
    other = with_prompts(replace(config, out=tmp_path / "other"), shard_size=60)
    assert write_all(other) == rows
    assert sum(row["reason"] == "near_duplicate" for row in rows) > 5


def test_a_shard_is_compared_only_once_those_before_it_are_there(config: PipelineConfig) -> None:
    with pytest.raises(RuntimeError, match="shard 1 is compared with it. Write it first"):
        write_shard(config, 1)


def test_a_changed_earlier_shard_has_the_later_ones_judged_again(config: PipelineConfig) -> None:
    write_all(config)
    before = [store.read_sidecar(path_of(config, number)) for number in range(num_shards(config))]
    lines = Path(config.prompts.captions).read_text().splitlines()
    Path(config.prompts.captions).write_text("\n".join([as_lines([triplet()]), *lines[1:]]))
    write_all(config)
    after = [store.read_sidecar(path_of(config, number)) for number in range(num_shards(config))]
    assert all(one and other and one.fingerprint != other.fingerprint for one, other in zip(before, after, strict=True))


def test_another_threshold_is_judged_from_the_answers_without_a_model(
    tiny_config: PipelineConfig, tmp_path: Path
) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("a red circle on a white background\na blue star at night")
    config = with_prompts(tiny_config, captions=str(path), backend="template", num_triplets_per_caption=4, shard_size=9)
    config = with_prompts(config, max_prompt_tokens=200)
    write_shard(config, 0)
    answers = store.RunFolder(config.out).shard("answers", 0)
    made = answers.stat().st_mtime_ns
    strict = with_prompts(config, screening=ScreeningConfig(near_duplicate=0.6))
    counts = write_shard(strict, 0).counts
    assert counts["near_duplicate"] > 0 and counts["kept"] > 0
    assert answers.stat().st_mtime_ns == made
    assert [row["generation"] for row in rows_of(strict)] == [row["text"] for row in pq.read_table(answers).to_pylist()]
