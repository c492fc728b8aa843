"""What a run's triplets look like, as plain text: what `ip2p prompts inspect` prints."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import PipelineConfig
from ip2p.records import hash_to_unit

BAR = 40
"""Characters of the longest bar."""


def describe(config: PipelineConfig) -> str:
    """The whole text. ValueError where the run has no triplets."""
    paths = store.RunFolder(config.out).shards("triplets")
    if not paths:
        raise ValueError(f"{config.out} has no triplets. Run `ip2p dataset` into that folder first.")
    found = measure(read_generations(paths))
    left_out = store.read_summary(config.out).get("prompts", {}).get("left_out_captions", {})
    parts = [
        ("Reasons", _reasons(found.reasons)),
        ("Rows of the source that are no caption", _reasons(left_out)),
        ("Edit types", _edit_types(found)),
        ("Most frequent verbs", _words(found.verbs)),
        ("Most frequent objects", _words(found.objects)),
        *((f"Words of {name}", _histogram(counts)) for name, counts in found.lengths.items()),
        ("Samples", _samples(found.samples)),
    ]
    told = [(title, list(lines)) for title, lines in parts]
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in told if lines)


def _reasons(counts: Mapping[str, int]) -> Iterator[str]:
    total = sum(counts.values())
    for reason, num in counts.items():
        yield f"{reason or 'kept':<16} {num:>9}  {num / total:6.1%}"


def _edit_types(found: Statistics) -> Iterator[str]:
    for name, counts in found.edit_types.items():
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
            yield f"{reason or 'kept'}: {_told(row)}"


def _told(row: Row) -> str:
    if not row["edit_prompt"]:
        return f"{row['caption']} | {' '.join(row['generation'].split())[:120]!r}"
    return f"[{row['edit_type']}] {row['original_prompt']} | {row['edit_prompt']} | {row['edited_prompt']}"


Row = Mapping[str, Any]

COLUMNS = ("original_prompt", "edit_prompt", "edited_prompt", "edit_type", "caption", "generation", "reason")
TEXTS = ("original_prompt", "edit_prompt", "edited_prompt")
WORD = re.compile(r"[^\W\d_]+")
BIN_WORDS = 5
"""Words that a bar of the length histograms spans."""
NUM_WORDS, NUM_SAMPLES = 12, 3
_LEADING = "please can could would you we i it the a an let s now just how about what if maybe be should i'd like to"
LEADING = frozenset(_LEADING.split())
"""Words that come before the verb of an instruction."""
_LITTLE = (
    "a an the of in on at with and or to it its is are as by for from into make made turn his her their this that him "
    "them be all up out over under so one some s"
)
SAYING_LITTLE = frozenset(_LITTLE.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counts over a run's generations."""

    reasons: Mapping[str, int]
    """Generations by reason; those that were kept under the empty one."""
    edit_types: Mapping[str, Mapping[str, int]]
    """Generations with a triplet by edit type and reason."""
    verbs: Sequence[tuple[str, int]]
    """First words of kept instructions, the most frequent first."""
    objects: Sequence[tuple[str, int]]
    """Words of kept instructions that one of the captions has too."""
    lengths: Mapping[str, Mapping[int, int]]
    """Kept triplets by words of each text: the least number of a bar to its count."""
    samples: Mapping[str, Sequence[Row]]
    """A few rows of every reason."""


def read_generations(paths: Iterable[Path]) -> list[Row]:
    """All rows of shards of triplets, in order."""
    return [row for path in paths for row in pq.read_table(path, columns=list(COLUMNS)).to_pylist()]


def measure(rows: Sequence[Row]) -> Statistics:
    """The counts; which rows are samples is drawn by hash, so that the same run shows the same."""
    kept = [row for row in rows if not row["reason"]]
    return Statistics(
        reasons=_sorted(Counter(row["reason"] for row in rows)),
        edit_types=_by_type(rows),
        verbs=Counter(filter(None, (verb_of(row["edit_prompt"]) for row in kept))).most_common(NUM_WORDS),
        objects=Counter(word for row in kept for word in objects_of(row)).most_common(NUM_WORDS),
        lengths={name: _lengths(row[name] for row in kept) for name in TEXTS},
        samples={reason: _sample_rows(rows, reason) for reason in sorted({row["reason"] for row in rows})},
    )


def verb_of(instruction: str) -> str:
    """The first word that is no politeness; empty where there is none."""
    return next((word for word in _words_of(instruction) if word not in LEADING), "")


def objects_of(row: Row) -> set[str]:
    """What the instruction names that a caption has."""
    named = {word for word in _words_of(row["edit_prompt"]) if word not in SAYING_LITTLE} - {
        verb_of(row["edit_prompt"])
    }
    return named & {*_words_of(row["original_prompt"]), *_words_of(row["edited_prompt"])}


def _words_of(text: str) -> Iterator[str]:
    return (found[0] for found in WORD.finditer(text.casefold()))


def _by_type(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        if row["edit_type"]:
            counts.setdefault(row["edit_type"], Counter())[row["reason"]] += 1
    return {name: _sorted(counts[name]) for name in sorted(counts, key=lambda name: -counts[name].total())}


def _sorted(counts: Counter[str]) -> dict[str, int]:
    """Kept first, then the most frequent reasons."""
    return dict(sorted(counts.items(), key=lambda item: (bool(item[0]), -item[1], item[0])))


def _lengths(texts: Iterable[str]) -> dict[int, int]:
    counts = Counter(len(text.split()) // BIN_WORDS * BIN_WORDS for text in texts)
    return {start: counts[start] for start in range(0, max(counts, default=-BIN_WORDS) + BIN_WORDS, BIN_WORDS)}


def _sample_rows(rows: Iterable[Row], reason: str) -> list[Row]:
    some = [row for row in rows if row["reason"] == reason]
    return sorted(some, key=lambda row: hash_to_unit("sample", *(row[name] for name in COLUMNS)))[:NUM_SAMPLES]
