"""Which triplets are kept: the first reason that holds against each, in the order in which they were written.

Of triplets that are alike the first is kept: within a shard the earlier row, across shards the earlier shard, whichever
was made first.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ip2p.config import PipelineConfig, ScreeningConfig
from ip2p.prompts.captions import reads_as
from ip2p.prompts.format import Reason, judge_triplet
from ip2p.records import EditTriplet

WORD = re.compile(r"\w+")
BEGIN_ALIKE, CONTAINED = 4, 3
"""Letters that words share where they are held for forms of one: `crocheted` and `crocheting`, `fog` and `foggy`."""
_LITTLE = "a an the of in on at with and to it its is are as by for from into make made turn"
SAYING_LITTLE = frozenset(_LITTLE.split())


@dataclass(slots=True)
class Screen:
    """What is asked of triplets, and which were kept already."""

    config: ScreeningConfig
    fits: Callable[[str], bool]
    earlier: WordIndex | None = None
    """Those kept by earlier shards."""
    _seen: set[str] = field(default_factory=set)
    _kept: WordIndex | None = None

    def judge(self, triplet: EditTriplet) -> Reason:
        """The reason against a triplet, or nothing; one that is kept counts against those that come after it."""
        reason = self._first_reason(triplet)
        if not reason:
            self._seen.add(triplet.id)
            if self.config.near_duplicate is not None:
                self._kept = self._kept or WordIndex(self.config.near_duplicate)
                self._kept.add(triplet)
        return reason

    def _first_reason(self, triplet: EditTriplet) -> Reason:
        texts = (triplet.original_prompt, triplet.edit_prompt, triplet.edited_prompt)
        reason = judge_triplet(triplet, fits=self.fits, seen=self._seen)
        if reason:
            return reason
        if not all(reads_as(text, self.config.language) for text in texts):
            return "language"
        if names_banned(texts, self.config.banned_words):
            return "banned"
        if self.config.moderation and any(map(load_moderation(self.config.moderation), texts)):
            return "moderated"
        if self.config.check_agreement and not agrees(triplet):
            return "disagreement"
        indices = [index for index in (self.earlier, self._kept) if index is not None]
        return "near_duplicate" if any(index.holds_one_like(triplet) for index in indices) else ""


def names_banned(texts: Sequence[str], banned: Sequence[str]) -> bool:
    """Whether a text has one of the words or phrases, as whole words in any case."""
    return any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in banned for text in texts)


def agrees(triplet: EditTriplet) -> bool:
    """Whether the instruction names a word that the caption gained or lost, in some form of it."""
    before, after, said = (
        {word for word in WORD.findall(text.casefold()) if word not in SAYING_LITTLE}
        for text in (triplet.original_prompt, triplet.edited_prompt, triplet.edit_prompt)
    )
    return any(_are_forms_of_one(*words) for words in itertools.product(before ^ after, said))


def _are_forms_of_one(word: str, other: str) -> bool:
    short, long = sorted((word, other), key=len)
    if short == long:
        return True
    return (len(short) >= CONTAINED and short in long) or (
        len(short) >= BEGIN_ALIKE and long.startswith(short[:BEGIN_ALIKE])
    )


def load_moderation(name: str) -> Callable[[str], bool]:
    """The function that `module:function` names. ValueError where there is none."""
    module, _, function = name.partition(":")
    try:
        found: Callable[[str], bool] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"screening.moderation {name} cannot be imported ({error}). Name a function as module:function."
        ) from error
    return found


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


def length_check(config: PipelineConfig) -> Callable[[str], bool]:
    """Says of a text whether the renderer's text encoder takes it whole."""
    from ip2p.models import loading

    tokenizer = loading.load_tokenizer(config.rendering.model, revision=config.rendering.revision)
    limit = config.prompts.max_prompt_tokens or tokenizer.model_max_length

    @functools.cache
    def fits(text: str) -> bool:
        return len(tokenizer(text, verbose=False)["input_ids"]) <= limit

    return fits
