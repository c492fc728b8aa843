"""Moves triplets in and out: a run's to a jsonl file, and other people's files under our names."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import PipelineConfig
from ip2p.prompts.captions import Line, numbered_lines, to_triplet
from ip2p.records import EditTriplet
from ip2p.sources.columns import TRIPLET_ALIASES
from ip2p.sources.location import locate

logger = logging.getLogger(__name__)

FIELDS = ("original_prompt", "edit_prompt", "edited_prompt", "edit_type", "source")


def export_triplets(config: PipelineConfig, path: Path, *, rejected: bool = False) -> int:
    """Writes a run's kept triplets, or with `rejected` every generation and its reason; returns the number of lines."""
    shards = store.RunFolder(config.out).shards("triplets")
    if not shards:
        raise ValueError(f"{config.out} has no triplets. Run `ip2p dataset` into that folder first.")
    names = [*FIELDS, *(["caption", "generation"] if rejected else [])]
    rows = (row for shard in shards for row in pq.read_table(shard, columns=[*names, "reason"]).to_pylist())
    chosen = [
        {name: row[name] for name in [*names, *(["reason"] if rejected else [])]}
        for row in rows
        if rejected or not row["reason"]
    ]
    _write_lines(path, chosen)
    return len(chosen)


def import_triplets(
    source: str,
    path: Path,
    columns: Mapping[str, str] | None = None,
    *,
    split: str = "train",
    revision: str | None = None,
    limit: int | None = None,
) -> Counter[str]:
    """Writes the triplets of a jsonl, csv or parquet file or a hub dataset under our names; returns counts by reason.

    `columns` maps our names to theirs; the default knows those of the original's files. ValueError if no row is a
    triplet.
    """
    location = locate(source, what="triplets file", way_out="Give a .jsonl, .csv or .parquet file or a hub dataset.")
    lines = numbered_lines(location, split=split, revision=revision, limit=limit)
    counts, first = Counter[str](), ""
    triplets: dict[str, EditTriplet] = {}
    for number, line in lines:
        try:
            triplet = to_triplet(_renamed(line, columns), Path(source).name)
        except ValueError as error:
            logger.debug("%s row %d is left out: %s", source, number, error)
            counts["malformed"] += 1
            first = first or f"row {number}: {error}"
            continue
        counts["duplicate" if triplet.id in triplets else "imported"] += 1
        triplets.setdefault(triplet.id, triplet)
    if not triplets:
        raise ValueError(
            f"{source} has no triplet ({first or 'it is empty'}). Name its columns with --columns "
            f"{','.join(f'{name}=THEIRS' for name in TRIPLET_ALIASES)}."
        )
    _write_lines(path, [{name: getattr(triplet, name) for name in FIELDS} for triplet in triplets.values()])
    return counts


def _renamed(line: Line, columns: Mapping[str, str] | None) -> object:
    record = json.loads(line) if isinstance(line, str) else line
    if columns is None or not isinstance(record, Mapping):
        return record
    return {ours: record[theirs] for ours, theirs in columns.items() if theirs in record}


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    store.write_bytes(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
