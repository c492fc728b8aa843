"""Which triplets are kept: the first reason that applies to each, in the order in which they were written.

Of similar triplets the first is kept: within a shard the earlier row, across shards the one in the earlier shard,
whichever shard was written first.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ip2p.config import MADE_BY_SERVER, PipelineConfig, ScreeningConfig
from ip2p.prompts.captions import reads_as
from ip2p.prompts.format import Reason
from ip2p.records import EditTriplet

Words = frozenset[str]
WORD = re.compile(r"\w+")
BEGIN_ALIKE, CONTAINED = 4, 3
"""Letters shared by words that count as forms of one: `crocheted` and `crocheting`, `fog` and `foggy`."""
_FUNCTION_WORDS = "a an the of in on at with and to it its is are as by for from into make made turn"
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that do not say what an instruction changes."""


@dataclass(slots=True)
class Screen:
    """Judges triplets by the config and by those that it kept before."""

    config: ScreeningConfig
    fits: Callable[[str], bool]
    earlier: WordIndex | None = None
    """Triplets kept by earlier shards."""
    _seen: set[str] = field(default_factory=set)
    _kept: WordIndex | None = None

    def judge(self, triplet: EditTriplet) -> Reason:
        """Returns the reason against a triplet, or nothing; a kept one counts against those that come after it."""
        reason = self._first_reason(triplet)
        if not reason:
            self._seen.add(triplet.id)
            if self.config.near_duplicate is not None:
                self._kept = self._kept or WordIndex(self.config.near_duplicate)
                self._kept.add(triplet)
        return reason

    def _first_reason(self, triplet: EditTriplet) -> Reason:
        texts = (triplet.original_prompt, triplet.edit_prompt, triplet.edited_prompt)
        if is_no_op(triplet.original_prompt, triplet.edited_prompt):
            return "no_op"
        if not all(map(self.fits, texts)):
            return "too_long"
        if triplet.id in self._seen:
            return "duplicate"
        if not all(reads_as(text, self.config.language) for text in texts):
            return "language"
        if names_banned(texts, self.config.banned_words):
            return "banned"
        if self.config.moderation and any(map(load_moderation(self.config.moderation), texts)):
            return "moderated"
        if self.config.check_agreement and not agrees(triplet):
            return "disagreement"
        if self.config.check_reference and not refers_to_the_change(triplet):
            return "other_reference"
        indices = [index for index in (self.earlier, self._kept) if index is not None]
        return "near_duplicate" if any(index.has_similar(triplet) for index in indices) else ""


def is_no_op(original_prompt: str, edited_prompt: str) -> bool:
    """Returns whether both captions are the same except for case, spaces, punctuation and Unicode form."""
    return _bare(original_prompt) == _bare(edited_prompt)


def _bare(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]|_", " ", plain).split()) or " ".join(plain.split())


def names_banned(texts: Sequence[str], banned: Sequence[str]) -> bool:
    """Returns whether a text has one of the words or phrases, as whole words in any case."""
    words, phrases = _sorted_out(tuple(banned))
    return any(not words.isdisjoint(WORD.findall(text.lower())) or phrases.search(text) for text in texts)


@functools.lru_cache(maxsize=2)
def _sorted_out(banned: tuple[str, ...]) -> tuple[frozenset[str], re.Pattern[str]]:
    """Returns the single words, of which there may be thousands, and a pattern of all else."""
    words = [entry for entry in banned if WORD.fullmatch(entry)]
    phrases = "|".join(re.escape(entry) for entry in set(banned).difference(words))
    return frozenset(map(str.lower, words)), re.compile(rf"\b(?:{phrases})\b" if phrases else r"(?!)", re.IGNORECASE)


def agrees(triplet: EditTriplet) -> bool:
    """Returns whether the instruction names a word that the caption gained or lost, in some form of it."""
    before, after, instruction = (
        set(_words(text)) - FUNCTION_WORDS
        for text in (triplet.original_prompt, triplet.edited_prompt, triplet.edit_prompt)
    )
    return any(_are_forms_of_one(*words) for words in itertools.product(before ^ after, instruction))


_BETWEEN_PHRASES = "and or but near beside next behind under over above below against while"
BETWEEN_PHRASES = FUNCTION_WORDS | frozenset(_BETWEEN_PHRASES.split())
"""Words at which a caption falls into phrases, such as `large red circle`."""
_WHAT_FOLLOWS = re.compile(r"\b(?:with|for|into|to)\b", re.IGNORECASE)
"""Words of an instruction after which it names what is new."""


def refers_to_the_change(triplet: EditTriplet) -> bool:
    """Returns whether the edit changes the phrase of the original caption that the instruction names, and no other.

    "make the ring red" names the ring; if the edited caption has a red square instead of a blue one and the ring as it
    was, the two do not fit. True if the instruction names no phrase, or the edit only adds to the caption. Another
    phrase is changed if a new one shares words with it; one that is dropped, or gains or loses words, is only reworded.
    """
    before, after = (Counter(phrases_of(text)) for text in (triplet.original_prompt, triplet.edited_prompt))
    lost, gained = before - after, after - before
    named = set(_words(_WHAT_FOLLOWS.split(triplet.edit_prompt, maxsplit=1)[0])) - BETWEEN_PHRASES
    most = max((len(named & phrase) for phrase in before), default=0)
    if not lost or not most:
        return True
    others = [phrase for phrase in lost if len(named & phrase) < most]
    changes_others = any(phrase & new and not (phrase <= new or new <= phrase) for phrase in others for new in gained)
    return len(others) < len(lost) and not changes_others


def phrases_of(caption: str) -> list[Words]:
    """Splits a caption at function words and punctuation into the sets of words between them."""
    parts = re.findall(r"\w+|[^\w\s]", caption.casefold())
    runs = itertools.groupby(parts, lambda part: WORD.fullmatch(part) is not None and part not in BETWEEN_PHRASES)
    return [frozenset(run) for is_phrase, run in runs if is_phrase]


def _are_forms_of_one(word: str, other: str) -> bool:
    short, long = sorted((word, other), key=len)
    if short == long:
        return True
    return (len(short) >= CONTAINED and short in long) or (
        len(short) >= BEGIN_ALIKE and long.startswith(short[:BEGIN_ALIKE])
    )


def load_moderation(name: str) -> Callable[[str], bool]:
    """Returns the function that `module:function` names. ValueError if there is none."""
    module, _, attribute = name.partition(":")
    try:
        function: Callable[[str], bool] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"screening.moderation {name} cannot be imported ({error}). Name a function as module:function."
        ) from error
    return function


def words_of(triplet: EditTriplet) -> Words:
    """Returns the words in lower case, each marked with the text that it stands in."""
    texts = (triplet.original_prompt, triplet.edit_prompt, triplet.edited_prompt)
    return frozenset(f"{mark}{word}" for mark, text in zip("oie", texts, strict=True) for word in _words(text))


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def likeness(one: Words, other: Words) -> float:
    """Computes the Jaccard index, in [0, 1]."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0


class WordIndex:
    """Finds similar ones among the triplets added to it; only words of a set's prefix need to be looked up.

    Triplets about different pictures are not similar, whatever their words.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._sets: list[tuple[Words, str]] = []
        """The words of each triplet, and its picture."""
        self._places: defaultdict[str, list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._sets)

    def add(self, triplet: EditTriplet) -> None:
        """Adds a triplet."""
        words = words_of(triplet)
        for word in self._prefix(words):
            self._places[word].append(len(self._sets))
        self._sets.append((words, triplet.picture))

    def has_similar(self, triplet: EditTriplet) -> bool:
        """Returns whether an added triplet has a likeness of at least `limit`."""
        words = words_of(triplet)
        places = {place for word in self._prefix(words) for place in self._places.get(word, ())}
        sets = (self._sets[place] for place in places)
        return any(picture == triplet.picture and likeness(words, other) >= self.limit for other, picture in sets)

    def _prefix(self, words: Words) -> list[str]:
        size = len(words) - math.ceil(self.limit * len(words) - 1e-9) + 1
        return sorted(words, key=lambda word: (-len(word), word))[:size]


def length_check(config: PipelineConfig) -> Callable[[str], bool]:
    """Returns a function that says whether the renderer's text encoder takes a text whole; a server takes any."""
    if config.rendering.backend in MADE_BY_SERVER:
        return lambda text: True
    from ip2p.models import loading

    tokenizer = loading.load_tokenizer(config.rendering.model, revision=config.rendering.revision)
    limit = config.prompts.max_prompt_tokens or tokenizer.model_max_length

    @functools.cache
    def fits(text: str) -> bool:
        return len(tokenizer(text, verbose=False)["input_ids"]) <= limit

    return fits
