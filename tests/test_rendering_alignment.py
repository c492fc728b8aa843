"""Tokens go by the tokens that stand for them: checked on sentences, and against every other alignment there is."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer

from ip2p.config import CrossAlignment
from ip2p.p2p.alignment import map_tokens, match_tokens, match_words, split_words
from ip2p.presets import data_folder

CAPTION = "a small red circle on a white background"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return CLIPTokenizer.from_pretrained(data_folder() / "shapes" / "stable-diffusion" / "tokenizer")


def longest_match(one: list[int], other: list[int]) -> int:
    """The most tokens that two sequences share in order, by trying every choice."""
    for num in range(min(len(one), len(other)), 0, -1):
        if {*combinations(one, num)} & {*combinations(other, num)}:
            return num
    return 0


def padded_tokens(tokenizer: Any, text: str) -> list[str]:
    ids = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length).input_ids
    tokens: list[str] = tokenizer.convert_ids_to_tokens(ids)
    return tokens


@pytest.mark.parametrize("way", ["refine", "replace"])
def test_equal_captions_are_matched_place_by_place(tokenizer: Any, way: CrossAlignment) -> None:
    found = map_tokens(tokenizer, CAPTION, CAPTION, way)
    assert torch.equal(found.matrix, torch.eye(tokenizer.model_max_length))
    assert not found.own.any()


def test_a_swapped_word_takes_the_place_of_the_old_one_or_keeps_its_own(tokenizer: Any) -> None:
    edited = CAPTION.replace("circle", "square")
    replaced, refined = (map_tokens(tokenizer, CAPTION, edited, way) for way in ("replace", "refine"))
    assert torch.equal(replaced.matrix, torch.eye(tokenizer.model_max_length))
    assert refined.own.nonzero().flatten().tolist() == [4]
    assert not refined.matrix[:, 4].any()
    assert torch.equal(refined.matrix.sum(0), 1 - refined.own)


@pytest.mark.parametrize("way", ["refine", "replace"])
def test_added_words_keep_their_own_maps_and_all_others_find_theirs(tokenizer: Any, way: CrossAlignment) -> None:
    edited = CAPTION.replace(" on", " and a large blue star on")
    found = map_tokens(tokenizer, CAPTION, edited, way)
    one, other = (padded_tokens(tokenizer, text) for text in (CAPTION, edited))
    own = {place for place, alone in enumerate(found.own.tolist()) if alone}
    real = [place for place, token in enumerate(other) if place <= other.index("<|endoftext|>")]
    assert sorted(other[place] for place in own if place in real) == [
        "a</w>",
        "and</w>",
        "blue</w>",
        "large</w>",
        "star</w>",
    ]
    sources = [int(found.matrix[:, place].argmax()) for place in real if place not in own]
    assert sources == list(range(one.index("<|endoftext|>") + 1))
    assert [one[source] for source in sources] == [other[place] for place in real if place not in own]


def test_words_of_unlike_numbers_of_tokens_share_evenly() -> None:
    """One token becomes two, which take half of its map each; two become one, which takes both."""
    assert match_words([[5], [6]], [[7, 8], [6]]) == [(0, 0, 0.5), (0, 1, 0.5), (1, 2, 1.0)]
    assert match_words([[7, 8], [6]], [[5], [6]]) == [(0, 0, 1.0), (1, 0, 1.0), (2, 1, 1.0)]


def test_the_alignment_matches_as_many_tokens_as_any() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        one, other = (
            torch.randint(4, (int(torch.randint(1, 9, (1,), generator=generator)),), generator=generator).tolist()
            for _ in range(2)
        )
        pairs = match_tokens([one], [other])
        assert all(one[i] == other[j] and share == 1 for i, j, share in pairs)
        assert all(a < c and b < d for (a, b, _), (c, d, _) in zip(pairs, pairs[1:], strict=False))
        assert len(pairs) == longest_match(one, other)


def test_words_are_tokenized_as_the_whole_caption_is(tokenizer: Any) -> None:
    for text in (CAPTION, "A ring, next to  a large-ish star!", "pinkish"):
        whole = tokenizer(text).input_ids[1:-1]
        assert [token for word in split_words(tokenizer, text) for token in word] == whole
