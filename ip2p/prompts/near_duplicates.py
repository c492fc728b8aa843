"""Triplets that say again what an earlier one says: an exact search by the words that they share.

The likeness of two triplets is the Jaccard index of their words, each marked with the text that it stands in. Words
are put in one fixed order, the long and so mostly rare ones first. Two sets that are alike by t must then share a word
within the first n - ceil(t n) + 1 of each, so only triplets that do are compared (prefix filtering, Chaudhuri et al.,
2006): no pair is missed and few are looked at.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict

from ip2p.records import EditTriplet

WORD = re.compile(r"\w+")

Words = frozenset[str]


def words_of(triplet: EditTriplet) -> Words:
    """Words in lower case, marked with the text that they stand in."""
    texts = (triplet.original_prompt, triplet.edit_prompt, triplet.edited_prompt)
    return frozenset(f"{mark}{word}" for mark, text in zip("oie", texts, strict=True) for word in _words(text))


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def likeness(one: Words, other: Words) -> float:
    """Jaccard index, in [0, 1]."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0


class WordIndex:
    """Triplets that are kept, findable by likeness."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._sets: list[Words] = []
        self._places: defaultdict[str, list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._sets)

    def add(self, triplet: EditTriplet) -> None:
        """From here on triplets like this one are found."""
        words = words_of(triplet)
        for word in self._prefix(words):
            self._places[word].append(len(self._sets))
        self._sets.append(words)

    def holds_one_like(self, triplet: EditTriplet) -> bool:
        """Whether one of those added is at least `limit` alike."""
        words = words_of(triplet)
        places = {place for word in self._prefix(words) for place in self._places.get(word, ())}
        return any(likeness(words, self._sets[place]) >= self.limit for place in places)

    def _prefix(self, words: Words) -> list[str]:
        size = len(words) - math.ceil(self.limit * len(words) - 1e-9) + 1
        return sorted(words, key=lambda word: (-len(word), word))[:size]
