"""Who is shown of many: shards from all over a run, rows in turns from every group, the best and the worst edits.

Nobody picks: order within a group is by hash. What is looked into is bounded, so that a run of a million pairs costs
no more than one of ten thousand.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq

T = TypeVar("T")
Row = dict[str, Any]

MOST_SHARDS = 24
"""Shards that pairs are taken from."""
MOST_PAIRS = 20_000
"""Pairs that are chosen from."""
MOST_BYTES = 1_500_000_000
"""Bytes of pictures that are passed over to reach the chosen ones: parquet reads a column from its start."""


def spread(files: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly from first to last."""
    if len(files) <= most:
        return list(files)
    return [files[number * len(files) // most] for number in range(most)]


def num_readable(shard: Path, num_shards: int) -> int:
    """How many of a shard's first rows are chosen from, where so many shards share what is allowed."""
    found = pq.read_metadata(shard)
    if not found.num_rows:
        return 0
    groups = [found.row_group(number) for number in range(found.num_row_groups)]
    per_row = sum(group.total_byte_size for group in groups) / found.num_rows
    affordable = MOST_BYTES / num_shards / max(1.0, per_row)
    return int(max(1, min(found.num_rows, MOST_PAIRS // num_shards, affordable)))


def take_turns(rows: Sequence[Row], group: Callable[[Row], Any], num: int) -> list[Row]:
    """At most `num` rows, in turns from every group; rows of a group and groups of a turn in an order by hash."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=_shuffle_key):
        groups[group(row)].append(row)
    turns = [(turn, _hashed(f"{turn}/{name}"), row) for name, some in groups.items() for turn, row in enumerate(some)]
    return [row for _, _, row in sorted(turns, key=lambda item: item[:2])[:num]]


def _shuffle_key(row: Row) -> str:
    return _hashed(f"{row.get('triplet_id', '')}/{row.get('candidate', row.get('case', ''))}")


def _hashed(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()


def rank_edits(rows: Sequence[Row]) -> list[Row]:
    """From the best to the worst: by the oracle's verdict first, then by CLIP; without those that nothing tells apart.

    CLIP's word is the mean rank by direction and by image similarity, for the two differ in unit and spread: who leaves
    the input as it was ranks low in the first, who draws another picture in the second.
    """
    marks = [_mark(row) for row in rows]
    ranks = [_ranks([row.get(name) for row in rows]) for name in ("clip_direction", "clip_image")]
    told = [some for some in ranks if some is not None]
    if not told and len(set(marks)) < 2:
        return []
    clip = np.mean(told, axis=0) if told else np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda number: (-marks[number], -clip[number], rows[number]["case"]))
    return [rows[number] for number in order]


def first_of_each(rows: Sequence[Row], num: int, most: int) -> list[Row]:
    """The first rows, no more than `most` of an edit type: the easiest type would fill every place."""
    seen: Counter[Any] = Counter()
    chosen: list[Row] = []
    for row in rows:
        seen[row["edit_type"]] += 1
        if seen[row["edit_type"]] <= most and len(chosen) < num:
            chosen.append(row)
    return chosen


def _mark(row: Mapping[str, Any]) -> float:
    """3 for a success, then how much of it holds; an edit that nobody judged has 0."""
    if row.get("success") is None:
        return 0.0
    return 3.0 * bool(row["success"]) + bool(row.get("done")) + bool(row.get("kept")) + bool(row.get("legible"))


def _ranks(values: Sequence[float | None]) -> Any:
    """Mean ranks in 0 … 1, what has no value in the middle; None where fewer than two have one."""
    found = np.array([math.nan if value is None else value for value in values], np.float64)
    finite = np.isfinite(found)
    if finite.sum() < 2:
        return None
    from scipy.stats import rankdata

    ranks = np.full(len(found), 0.5)
    ranks[finite] = (rankdata(found[finite]) - 1) / (finite.sum() - 1)
    return ranks
