"""What a run's triplets look like, as plain text: what `ip2p prompts inspect` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ip2p import store
from ip2p.config import PipelineConfig
from ip2p.prompts.statistics import BIN_WORDS, Row, Statistics, measure, read_generations

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
