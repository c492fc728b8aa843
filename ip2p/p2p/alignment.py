"""Matches each token of the edited caption with tokens of the original, for cross-attention prompt-to-prompt.

Two ways, after Hertz et al. (2022): *refine* matches equal tokens, and new ones keep their own maps; *replace* matches
word by word, so a substitute takes the map of the word that it replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ip2p.config import CrossAlignment
from ip2p.models.texts import tokenizer_lock
from ip2p.records import Candidate

Words = Sequence[Sequence[int]]
"""The token ids of each word."""


@dataclass(frozen=True, slots=True)
class TokenMap:
    """Says how maps of the original's tokens become those of the edited caption's, for one pair or stacked for many."""

    matrix: Tensor
    """([N,] L, L) float32: [i, j] is the share of original token i's map in that of edited token j."""
    own: Tensor
    """([N,] L) float32: 1 if an edited token keeps its own map, else 0."""
    gone: Tensor
    """([N,] L) float32: 1 at words of the original that the edited caption lacks, else 0."""
    new: Tensor
    """([N,] L) float32: 1 at words of the edited caption that the original lacks, else 0."""


def stack_maps(maps: Sequence[TokenMap], device: torch.device) -> TokenMap:
    """Stacks the maps of N pairs."""
    columns = zip(*((one.matrix, one.own, one.gone, one.new) for one in maps), strict=True)
    return TokenMap(*(torch.stack(column).to(device) for column in columns))


def map_tokens(
    tokenizer: PreTrainedTokenizerBase, original: str, edited: str, way: CrossAlignment, length: int | None = None
) -> TokenMap:
    """Aligns two captions that fit the tokenizer, which reads `length` tokens, by default its own.

    Captions with different numbers of words cannot be matched word by word; they are always refined.
    """
    one, other = split_words(tokenizer, original), split_words(tokenizer, edited)
    equal = match_tokens(one, other)
    matched = match_words(one, other) if way == "replace" and len(one) == len(other) else equal
    length = length or tokenizer.model_max_length
    # CLIP puts a token before the words; T5 does not, and Qwen has none behind them either
    start = max(0, len(tokenizer("").input_ids) - 1)
    matrix = torch.zeros(length, length)
    for i, j, share in matched:
        matrix[i + start, j + start] = share
    ends = [start + sum(len(word) for word in words) for words in (one, other)]
    matrix[:start, :start] = 1.0
    if max(ends) < length:
        matrix[ends[0], ends[1]] = 1.0
    padding = torch.arange(min(max(ends) + 1, length), length)
    matrix[padding, padding] = 1.0
    gone, new = torch.zeros(2, length)
    gone[start : ends[0]] = new[start : ends[1]] = 1.0
    for i, j, _ in equal:
        gone[i + start] = new[j + start] = 0.0
    return TokenMap(matrix, (matrix.sum(0) == 0).float(), gone, new)


def split_words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[list[int]]:
    """Returns the token ids of each word.

    The tokenizers of CLIP and T5 first split at white space. Others keep the space before a word as a part of it.
    """

    def read(part: str) -> list[int]:
        ids: list[int] = tokenizer(part, add_special_tokens=False).input_ids
        return ids

    words = text.split()
    alone = [read(word) for word in words]
    spaced = [*alone[:1], *(read(f" {word}") for word in words[1:])]
    return spaced if sum(spaced, []) == read(" ".join(words)) else alone


def match_words(original: Words, edited: Words) -> list[tuple[int, int, float]]:
    """Matches word k with word k, as (place, place, share): by token, or evenly if the numbers of tokens differ."""
    matched, i, j = [], 0, 0
    for one, other in zip(original, edited, strict=True):
        if len(one) == len(other):
            matched += [(i + k, j + k, 1.0) for k in range(len(one))]
        else:
            matched += [(i + k, j + n, 1.0 / len(other)) for k, n in product(range(len(one)), range(len(other)))]
        i, j = i + len(one), j + len(other)
    return matched


def match_tokens(original: Words, edited: Words) -> list[tuple[int, int, float]]:
    """Matches equal tokens, as (place, place, 1), by Needleman-Wunsch with match 1, mismatch -1 and gap 0."""
    one, other = ([token for word in words for token in word] for words in (original, edited))
    scores = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, j in product(range(len(one)), range(len(other))):
        matched = scores[i][j] + (1 if one[i] == other[j] else -1)
        scores[i + 1][j + 1] = max(matched, scores[i][j + 1], scores[i + 1][j])
    pairs, i, j = [], len(one), len(other)
    while i and j:
        if one[i - 1] == other[j - 1] and scores[i][j] == scores[i - 1][j - 1] + 1:
            i, j = i - 1, j - 1
            pairs.append((i, j, 1.0))
        elif scores[i][j] == scores[i - 1][j]:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def align_captions(
    tokenizer: PreTrainedTokenizerBase,
    batch: Sequence[Candidate],
    alignment: CrossAlignment,
    device: torch.device,
    length: int | None = None,
) -> TokenMap:
    """Aligns the captions of each pair."""
    captions = [(candidate.triplet.original_prompt, candidate.triplet.edited_prompt) for candidate in batch]
    with tokenizer_lock:
        maps = [map_tokens(tokenizer, original, edited, alignment, length) for original, edited in captions]
    return stack_maps(maps, device)
