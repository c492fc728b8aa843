"""Triplets in and out: a run's to a jsonl file, and other people's files under our names."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import PipelineConfig, PromptsConfig
from ip2p.prompts.captions import ALIASES, to_triplet
from ip2p.records import EditTriplet
from ip2p.sources.captions import Row, read_rows

logger = logging.getLogger(__name__)

FIELDS = ("original_prompt", "edit_prompt", "edited_prompt", "edit_type", "source")


def export_triplets(config: PipelineConfig, path: Path, *, rejected: bool = False) -> int:
    """Writes a run's kept triplets, or with `rejected` every generation and its reason; returns how many lines."""
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


def import_triplets(source: str, path: Path, columns: Mapping[str, str] | None = None, **options: Any) -> Counter[str]:
    """Writes the triplets of a jsonl, csv or parquet file or a hub dataset under our names; returns counts by reason.

    `columns` maps our names to theirs; without it those of the original's files are known. ValueError where not one
    row is a triplet.
    """
    counts, first = Counter[str](), ""
    seen: dict[str, EditTriplet] = {}
    for number, row in read_rows(PromptsConfig(captions=source, **options)):
        try:
            triplet = to_triplet(_renamed(row, columns), Path(source).name)
        except ValueError as error:
            logger.debug("%s row %d is left out: %s", source, number, error)
            counts["malformed"] += 1
            first = first or f"row {number}: {error}"
            continue
        counts["duplicate" if triplet.id in seen else "imported"] += 1
        seen.setdefault(triplet.id, triplet)
    if not seen:
        raise ValueError(
            f"{source} has no triplet ({first or 'it is empty'}). Name its columns with --columns "
            f"{','.join(f'{name}=THEIRS' for name in ALIASES)}."
        )
    _write_lines(path, [{name: getattr(triplet, name) for name in FIELDS} for triplet in seen.values()])
    return counts


def _renamed(row: Row, columns: Mapping[str, str] | None) -> object:
    found = json.loads(row) if isinstance(row, str) else dict(row)
    if columns is None or not isinstance(found, dict):
        return found
    return {ours: found[theirs] for ours, theirs in columns.items() if theirs in found}


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    def write(file: IO[bytes]) -> None:
        file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in rows)

    store.write_atomic(path, write)
