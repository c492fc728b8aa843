"""The shipped triplets and captions of photographs and artworks: how many, how spread, and nothing twice."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter

import pytest
from open_clip.tokenizer import SimpleTokenizer

from ip2p.config import PromptsConfig
from ip2p.presets import data_folder
from ip2p.prompts.captions import ReadyLine, read_entries
from ip2p.prompts.screening import is_no_op

SEEDS, CAPTIONS = data_folder() / "prompts" / "photo.jsonl", data_folder() / "prompts" / "photo_captions.txt"
TEXTS = ("original_prompt", "edit_prompt", "edited_prompt")
TEXT_TO_IMAGE_CANNOT = re.compile(r"\b(zoom|camera angle|closer|to the (left|right)|flip|rotate|crop)\b")


@pytest.fixture(scope="module")
def seeds() -> list[dict[str, str]]:
    return [json.loads(line) for line in SEEDS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return CAPTIONS.read_text(encoding="utf-8").splitlines()


def words_of(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def likeness(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def test_there_are_as_many_as_the_paper_had_and_their_types_are_spread(seeds: list[dict[str, str]]) -> None:
    counts = Counter(seed["edit_type"] for seed in seeds)
    assert len(seeds) == 760 and len(counts) == 16
    assert min(counts.values()) >= 35 and max(counts.values()) <= 60
    for start in range(0, 760, 152):
        assert len({seed["edit_type"] for seed in seeds[start : start + 152]}) == 16


def test_every_line_has_the_four_texts_and_nothing_around_them(seeds: list[dict[str, str]]) -> None:
    for seed in seeds:
        assert list(seed) == [*TEXTS, "edit_type"]
        assert all(value and value == " ".join(value.split()) for value in seed.values())


def test_the_stage_reads_them_all(captions: list[str]) -> None:
    entries = read_entries(PromptsConfig(captions=str(SEEDS)))
    assert len(entries) == 760 and all(isinstance(entry, ReadyLine) and entry.triplet for entry in entries)
    assert read_entries(PromptsConfig(captions=str(CAPTIONS))) == tuple(captions)


def test_no_text_is_longer_than_clip_reads(seeds: list[dict[str, str]], captions: list[str]) -> None:
    tokenizer = SimpleTokenizer()
    texts = [*captions, *(seed[name] for seed in seeds for name in TEXTS)]
    assert max(len(tokenizer.encode(text)) + 2 for text in texts) <= 77


def test_no_two_captions_are_alike(seeds: list[dict[str, str]], captions: list[str]) -> None:
    assert len(captions) >= 1000
    texts = [words_of(text) for text in [*captions, *(seed["original_prompt"] for seed in seeds)]]
    assert max(itertools.starmap(likeness, itertools.combinations(texts, 2))) < 0.6


def test_no_instruction_is_given_twice_and_each_changes_its_caption(seeds: list[dict[str, str]]) -> None:
    assert len({" ".join(sorted(words_of(seed["edit_prompt"]))) for seed in seeds}) == len(seeds)
    assert not any(is_no_op(seed["original_prompt"], seed["edited_prompt"]) for seed in seeds)


def test_no_instruction_moves_the_camera_or_counts(seeds: list[dict[str, str]]) -> None:
    assert [seed["edit_prompt"] for seed in seeds if TEXT_TO_IMAGE_CANNOT.search(seed["edit_prompt"].lower())] == []
