"""Moves triplets in and out: a run's to a jsonl file, and other people's files under our names."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ip2p import store
from ip2p.config import PipelineConfig
from ip2p.prompts.captions import Line, numbered_lines, to_triplet
from ip2p.prompts.shards import read_generations
from ip2p.records import LATER_COLUMNS, TEXT_COLUMNS, EditTriplet
from ip2p.sources.columns import TRIPLET_ALIASES
from ip2p.sources.files import parse_json
from ip2p.sources.location import locate

logger = logging.getLogger(__name__)


def export_triplets(config: PipelineConfig, path: Path, *, rejected: bool = False) -> int:
    """Writes a run's kept triplets, or with `rejected` every generation and its reason; returns the number of lines."""
    names = [*TEXT_COLUMNS, *(("caption", "generation", "reason") if rejected else ())]
    rows = [
        {name: row[name] for name in names}
        for row in read_generations(config, [*TEXT_COLUMNS, "caption", "generation", "reason"])
        if rejected or not row["reason"]
    ]
    _write_lines(path, rows)
    return len(rows)


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
    counts, first_error = Counter[str](), ""
    triplets: dict[str, EditTriplet] = {}
    lines = itertools.islice(numbered_lines(location, split=split, revision=revision), limit)
    for number, line in lines:
        try:
            triplet = to_triplet(_renamed(line, columns), Path(source).name)
        except ValueError as error:
            logger.debug("%s row %d is left out: %s", source, number, error)
            counts["malformed"] += 1
            first_error = first_error or f"row {number}: {error}"
            continue
        counts["duplicate" if triplet.id in triplets else "imported"] += 1
        triplets.setdefault(triplet.id, triplet)
    if not triplets:
        raise ValueError(
            f"{source} has no triplet ({first_error or 'it is empty'}). Name its columns with --columns "
            f"{','.join(f'{name}=THEIRS' for name in TRIPLET_ALIASES)}."
        )
    _write_lines(path, [{name: getattr(triplet, name) for name in TEXT_COLUMNS} for triplet in triplets.values()])
    return counts


def _renamed(line: Line, columns: Mapping[str, str] | None) -> object:
    record = parse_json(line) if isinstance(line, str) else line
    if columns is None or not isinstance(record, Mapping):
        return record
    return {ours: record[theirs] for ours, theirs in columns.items() if theirs in record}


def _write_lines(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Writes a line per row, without later columns that it does not fill."""
    rows = [{name: value for name, value in row.items() if value or name not in LATER_COLUMNS} for row in rows]
    store.write_bytes(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
