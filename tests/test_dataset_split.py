"""The split over random triplets from a grammar so small that captions collide all the time."""

from __future__ import annotations

import random

import pytest

from ip2p.dataset import split as splitting
from ip2p.dataset.split import Split, normalise, side_of

FRACTION = 0.2


def split_pairs(captions: list[tuple[str, str]], test_fraction: float) -> list[Split | None]:
    return list(splitting.split_pairs(captions, test_fraction))


def draw_captions(seed: int, number: int, *, words: int = 60) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return [(f"a {rng.randrange(words)}", f"A {rng.randrange(words)}.") for _ in range(number)]


def captions_of(captions: list[tuple[str, str]], split: str) -> set[str]:
    splits = split_pairs(captions, FRACTION)
    return {normalise(text) for pair, each in zip(captions, splits, strict=True) if each == split for text in pair}


@pytest.mark.parametrize("seed", range(20))
def test_no_caption_is_in_two_splits(seed: int) -> None:
    captions = draw_captions(seed, 300)
    train, test = captions_of(captions, "train"), captions_of(captions, "test")
    assert train and test and not train & test


@pytest.mark.parametrize("seed", range(20))
def test_adding_triplets_at_the_end_moves_none_and_drops_none(seed: int) -> None:
    captions = draw_captions(seed, 400)
    for number in (1, 50, 399):
        assert split_pairs(captions, FRACTION)[:number] == split_pairs(captions[:number], FRACTION)


@pytest.mark.parametrize("seed", range(20))
def test_in_any_order_no_pair_is_ever_on_the_other_side(seed: int) -> None:
    captions = draw_captions(seed, 300)
    for pair, split in zip(captions, split_pairs(captions, FRACTION), strict=True):
        assert split in (side_of(pair[0], FRACTION), None)


def test_pairs_of_the_same_triplet_share_their_fate() -> None:
    captions = [pair for pair in draw_captions(0, 200) for _ in range(3)]
    splits = split_pairs(captions, FRACTION)
    assert splits[::3] == splits[1::3] == splits[2::3]


def test_captions_that_do_not_collide_lose_nothing_and_the_share_is_the_one_asked_for() -> None:
    captions = [(f"caption {number}", f"edited {number}") for number in range(4000)]
    splits = split_pairs(captions, FRACTION)
    assert None not in splits
    assert splits.count("test") / 4000 == pytest.approx(FRACTION, abs=0.03)


def test_a_fraction_of_nought_or_one_gives_one_split() -> None:
    captions = draw_captions(0, 50)
    assert set(split_pairs(captions, 0.0)) == {"train"} and set(split_pairs(captions, 1.0)) == {"test"}


def test_case_spacing_and_final_marks_make_no_other_caption() -> None:
    assert normalise(" A  cat. ") == normalise("a cat") != normalise("a cat on a mat")
