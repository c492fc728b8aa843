"""Reads held-out edits from elsewhere: asks each benchmark whether the source is its own, and chooses among the edits.

Pictures stay encoded until they are needed, so that a benchmark's thousands fit into memory.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ip2p.evaluation.benchmarks import TEXTS, Asked, Facts, SourceEdit, benchmarks
from ip2p.evaluation.cases import EditCase, Mask, Pixels
from ip2p.images import Picture, open_pixels, read_mask
from ip2p.sources.files import parse_json
from ip2p.sources.hub import HubTable, lay_out
from ip2p.sources.location import locate
from ip2p.sources.row import Row, Table
from ip2p.sources.rows import open_table
from ip2p.sources.tables import ParquetTable

logger = logging.getLogger(__name__)

PICTURES = {"original_image": "original_image", "edited_image": "target_image", "mask_image": "mask"}
"""Columns of pictures to fields of a case."""


@dataclass(frozen=True, slots=True)
class BenchmarkCases:
    """Cases, and the name of the benchmark whose layout their source has."""

    layout: str
    cases: list[EditCase]


def read_benchmark(
    source: str,
    *,
    split: str = "test",
    revision: str | None = None,
    num: int | None = None,
    captions: Path | None = None,
) -> BenchmarkCases:
    """Reads the cases of a folder, a .jsonl, parquet files or a hub id: whole sessions up to `num`, types in turn.

    `captions` is MagicBrush's file of local descriptions. ValueError if the source is of no known form.
    """
    request = Asked(source=source, captions=captions)
    for benchmark in benchmarks().values():
        if (edits := benchmark.read(request)) is not None:
            return BenchmarkCases(benchmark.name, _choose(edits, num))
    table = open_table(locate(source), split=split, revision=revision, any_split=True)
    for benchmark in benchmarks().values():
        if (edits := benchmark.read_table(table, request)) is not None:
            return BenchmarkCases(benchmark.name, _choose(edits, num))
    raise ValueError(f"{source} is not a known benchmark. Its columns are: {', '.join(table.names)}.")


def _choose(edits: Sequence[SourceEdit], num: int | None) -> list[EditCase]:
    """Takes whole sessions, in turns from every edit type, up to `num` cases; `previous` counts within these."""
    sessions: dict[str, list[SourceEdit]] = defaultdict(list)
    for number, edit in enumerate(edits):
        sessions[edit.texts.get("session") or f"case {number}"].append(edit)
    by_type: dict[str, list[tuple[int, list[SourceEdit]]]] = defaultdict(list)
    for place, session in enumerate(sessions.values()):
        by_type[session[0].texts.get("edit_type") or "other"].append((place, session))
    ordered = [(turn, place, session) for group in by_type.values() for turn, (place, session) in enumerate(group)]
    cases: list[EditCase] = []
    for _, _, session in sorted(ordered, key=lambda item: item[:2]):
        start, last = len(cases), len(session) - 1
        if num is None or start + len(session) <= num:
            cases += [
                edit.as_case(start + turn - 1 if turn else None, turn == last) for turn, edit in enumerate(session)
            ]
    if not cases:
        raise ValueError(f"the source holds no edits, or every session has more than {num}. Raise --num.")
    return cases


Adapt = Callable[[Row, dict[str, str]], Facts | None]
"""Takes a row and the texts of its case, which it may change; returns what only the benchmark knows of the edit."""


def table_edits(
    table: Table, columns: Mapping[str, str], adapt: Adapt = lambda row, texts: None, further: Sequence[str] = ()
) -> list[SourceEdit]:
    """Reads the edits of a table, our names to its columns; `further` are the columns that `adapt` looks at."""
    pictures = {field: columns[name] for name, field in PICTURES.items() if name in columns}
    names = {name: theirs for name, theirs in columns.items() if name in TEXTS}
    rows = list(table.read([*names.values(), *further]))
    if isinstance(table, ParquetTable):
        table = HubTable(lay_out(table, list(dict.fromkeys(pictures.values())), []), "the benchmark")
    edits = []
    for number, row in enumerate(rows):
        if row.wording(names["edit_prompt"]) is None:
            logger.warning("left out %s: no instruction", row.where)
            continue
        texts = {name: row.text(theirs) for name, theirs in names.items()}
        loaders = {
            field: partial(_read_cell, table, number, theirs, field, row.where) for field, theirs in pictures.items()
        }
        facts = adapt(row, texts)
        edits.append(SourceEdit(texts, loaders, facts))
    return edits


def _read_cell(table: Table, number: int, column: str, field: str, where: str) -> Pixels | Mask | None:
    picture = table.row(number, [column]).picture(column)
    if picture is None and field == "original_image":
        raise ValueError(f"{where} has no picture in {column}. Remove the row or add the picture.")
    return None if picture is None else _read_picture(picture, field, where)


def _read_picture(picture: Picture, field: str, where: str) -> Pixels | Mask:
    try:
        return read_mask(picture) if field == "mask" else open_pixels(picture)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def file_loaders(files: Mapping[str, bytes | Path | None]) -> dict[str, Callable[[], Pixels | Mask]]:
    """Returns how the picture of each field is loaded, without those that are None."""
    return {field: partial(_read_picture, file, field, str(file)) for field, file in files.items() if file}


def read_listing(path: Path) -> list[tuple[str, Row]]:
    """Reads a JSON object of edits by key. ValueError if the file holds anything else."""
    try:
        edits = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(edits, dict):
        raise ValueError(f"{path} must hold a JSON object of edits by key, got {type(edits).__name__}.")
    return [
        (str(key), Row(row if isinstance(row, dict) else {}, f"{path} {key}", path.parent))
        for key, row in edits.items()
    ]
