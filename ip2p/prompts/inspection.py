"""Statistics of a run's triplets, and the text that `ip2p prompts inspect` prints of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ip2p import store
from ip2p.config import PipelineConfig
from ip2p.prompts.captions import WORD
from ip2p.prompts.screening import FUNCTION_WORDS
from ip2p.prompts.shards import read_generations
from ip2p.records import hash_to_unit

BAR = 40
"""Characters of the longest bar."""


def describe(config: PipelineConfig) -> str:
    """Writes the whole text. ValueError if the run has no triplets."""
    statistics = measure(list(read_generations(config, COLUMNS)))
    left_out = store.read_summary(config.out).get("prompts", {}).get("left_out_captions", {})
    parts = [
        ("Reasons", _reasons(statistics.reasons)),
        ("Rows of the source that were left out", _reasons(left_out)),
        ("Edit types", _edit_types(statistics.edit_types)),
        ("Most frequent verbs", _words(statistics.verbs)),
        ("Most frequent objects", _words(statistics.objects)),
        *((f"Words of {name}", _histogram(counts)) for name, counts in statistics.lengths.items()),
        ("Samples", _samples(statistics.samples)),
    ]
    sections = [(title, list(lines)) for title, lines in parts]
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections if lines)


def _reasons(counts: Mapping[str, int]) -> Iterator[str]:
    total = sum(counts.values())
    for reason, num in counts.items():
        yield f"{reason or 'kept':<16} {num:>9}  {num / total:6.1%}"


def _edit_types(edit_types: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    for name, counts in edit_types.items():
        lost = ", ".join(f"{reason} {num}" for reason, num in counts.items() if reason)
        yield f"{name:<16} {counts.get('', 0):>9} kept{f'; {lost}' if lost else ''}"


def _words(counts: Sequence[tuple[str, int]]) -> Iterator[str]:
    if counts:
        yield ", ".join(f"{word} {num}" for word, num in counts)


def _histogram(counts: Mapping[int, int]) -> Iterator[str]:
    most = max(counts.values(), default=0)
    for start, num in counts.items():
        yield f"{start:>3}–{start + BIN_WORDS - 1:<3} {num:>9}  {'█' * round(BAR * num / most)}".rstrip()


def _samples(samples: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    for reason, rows in samples.items():
        for row in rows:
            if row["edit_prompt"]:
                text = f"[{row['edit_type']}] {row['original_prompt']} | {row['edit_prompt']} | {row['edited_prompt']}"
            else:
                text = f"{row['caption']} | {' '.join(row['generation'].split())[:120]!r}"
            yield f"{reason or 'kept'}: {text}"


Row = Mapping[str, str]

COLUMNS = ("original_prompt", "edit_prompt", "edited_prompt", "edit_type", "caption", "generation", "reason")
TEXTS = COLUMNS[:3]
BIN_WORDS = 5
"""Words that each bar of the length histograms spans."""
NUM_WORDS, NUM_SAMPLES = 12, 3
_LEADING = "please can could would you we i it the a an let s now just how about what if maybe be should i'd like to"
LEADING = frozenset(_LEADING.split())
"""Words that come before the verb of an instruction."""
_MORE = "or his her their this that him them be all up out over under so one some s"
NOT_OBJECTS = FUNCTION_WORDS.union(_MORE.split())
"""Words of an instruction that do not name a thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counts of a run's generations."""

    reasons: Mapping[str, int]
    """Generations by reason; kept ones have the empty reason."""
    edit_types: Mapping[str, Mapping[str, int]]
    """Generations with a triplet by edit type and reason."""
    verbs: Sequence[tuple[str, int]]
    """First words of kept instructions, the most frequent first."""
    objects: Sequence[tuple[str, int]]
    """Words of kept instructions that also stand in one of the captions."""
    lengths: Mapping[str, Mapping[int, int]]
    """Kept triplets by the number of words of each text: a bar's lowest number to its count."""
    samples: Mapping[str, Sequence[Row]]
    """A few rows of every reason."""


def measure(rows: Sequence[Row]) -> Statistics:
    """Counts the rows; samples are drawn by hash, so the same run always shows the same."""
    kept = [row for row in rows if not row["reason"]]
    samples: dict[str, list[Row]] = {reason: [] for reason in sorted({row["reason"] for row in rows})}
    for row in sorted(rows, key=lambda row: hash_to_unit("sample", *(row[name] for name in COLUMNS))):
        if len(samples[row["reason"]]) < NUM_SAMPLES:
            samples[row["reason"]].append(row)
    return Statistics(
        reasons=_sorted(Counter(row["reason"] for row in rows)),
        edit_types=_by_type(rows),
        verbs=Counter(filter(None, (verb_of(row["edit_prompt"]) for row in kept))).most_common(NUM_WORDS),
        objects=Counter(word for row in kept for word in sorted(objects_of(row))).most_common(NUM_WORDS),
        lengths={name: _lengths(row[name] for row in kept) for name in TEXTS},
        samples=samples,
    )


def verb_of(instruction: str) -> str:
    """Returns the first word after any polite opening; empty if there is none."""
    return next((word for word in _words_of(instruction) if word not in LEADING), "")


def objects_of(row: Row) -> set[str]:
    """Returns the words of the instruction that name something in one of the captions."""
    named = set(_words_of(row["edit_prompt"])) - NOT_OBJECTS - {verb_of(row["edit_prompt"])}
    return named.intersection(_words_of(row["original_prompt"]) + _words_of(row["edited_prompt"]))


def _words_of(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _by_type(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        if row["edit_type"]:
            counts.setdefault(row["edit_type"], Counter())[row["reason"]] += 1
    return {name: _sorted(counts[name]) for name in sorted(counts, key=lambda name: -counts[name].total())}


def _sorted(counts: Counter[str]) -> dict[str, int]:
    """Sorts kept first, then the reasons by frequency."""
    return dict(sorted(counts.items(), key=lambda item: (bool(item[0]), -item[1], item[0])))


def _lengths(texts: Iterable[str]) -> dict[int, int]:
    counts = Counter(len(text.split()) // BIN_WORDS * BIN_WORDS for text in texts)
    return {start: counts[start] for start in range(0, max(counts, default=-BIN_WORDS) + BIN_WORDS, BIN_WORDS)}
