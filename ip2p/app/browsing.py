"""Browses pairs of a run, of parquet files or of the hub, by edit type, verdict, score and words. No gradio here.

Only texts and scores are held; pictures are read from their row when they are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from ip2p.images import open_picture
from ip2p.scoring import SCORE_COLUMNS
from ip2p.sources.columns import image_columns
from ip2p.sources.location import Location, data_files, locate
from ip2p.sources.rows import ListTable, ParquetTable, Row, Table, stream_rows
from ip2p.store import RunFolder

TEXTS = ("original_prompt", "edit_prompt", "edited_prompt", "edit_type")
VERDICTS = ("accepted", "reason")
ACCEPTED = "accepted"
FROM_HUB = 200
"""Rows that are fetched of a hub dataset."""
WAY_OUT = "Give a run folder, a folder of parquet files or a hub id (owner/name)."
ROUNDING = 1e-5
"""Cosines of equal pictures come out a little over 1."""
GAP = 4
SMALL = 192
"""Smaller pictures are shown larger, each pixel a square."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """All rows: their texts and scores, and where their pictures are read from."""

    table: pa.Table
    columns: tuple[str, str]
    """Of the original and of the edited image."""
    pictures: Table

    def choices(self, column: str) -> list[str]:
        """Lists the values of a column of texts, most frequent first."""
        if column not in self.table.column_names:
            return []
        counts = pc.value_counts(self.table[column]).to_pylist()
        return [row["values"] for row in sorted(counts, key=lambda row: -row["counts"]) if row["values"]]

    def scores(self) -> list[str]:
        """Lists the score columns that have numbers."""
        names = [name for name in SCORE_COLUMNS if name in self.table.column_names]
        return [name for name in names if self.table[name].null_count < len(self.table)]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Criteria of a search."""

    edit_types: Sequence[str] = ()
    verdicts: Sequence[str] = ()
    """`accepted` or reasons; all if empty."""
    score: str | None = None
    low: float = -1.0
    high: float = 1.0
    words: str = ""
    """Searched for in all texts."""


def open_pairs(source: str) -> Pairs:
    """Opens a run, a folder or a file of parquet, a pattern or a hub dataset. ValueError with the way out."""
    location = locate(source, way_out=WAY_OUT)
    if location.kind == "hub":
        return _open_hub(location)
    files = _files_of(location)
    if not files:
        raise ValueError(f"{source} holds no parquet file of pairs. {WAY_OUT}")
    return _open_files(files)


def _files_of(location: Location) -> list[Path]:
    """Lists a run's pairs, which may hold rejected ones too; else every parquet file."""
    if location.kind == "path" and (location.path / "pairs").is_dir():
        return RunFolder(location.path).shards("pairs")
    return data_files(location)


def _open_files(files: Sequence[Path]) -> Pairs:
    pictures = ParquetTable(files)
    columns = image_columns(pictures.names, where=str(files[0].parent))
    names = [name for name in (*TEXTS, *VERDICTS, *SCORE_COLUMNS) if name in pictures.names]
    parts = [
        pq.read_table(file, columns=[name for name in names if name in present])
        for file, present in pictures.names_by_file.items()
    ]
    return Pairs(pa.concat_tables(parts, promote_options="default"), columns, pictures)


def _open_hub(location: Location) -> Pairs:
    values = list(stream_rows(location, limit=FROM_HUB, way_out=WAY_OUT, split="train"))
    rows = [Row(row, f"{location.word} row {number}") for number, row in enumerate(values, start=1)]
    pictures = ListTable(rows)
    columns = image_columns(pictures.names, where=location.word)
    texts = [{key: row[key] for key in (*TEXTS, *SCORE_COLUMNS) if key in row} for row in values]
    return Pairs(pa.Table.from_pylist(texts), columns, pictures)


def find(pairs: Pairs, wanted: Wanted) -> np.ndarray:
    """Returns the numbers of the rows that match, in their order."""
    table = pairs.table
    keep = np.ones(len(table), dtype=bool)
    if wanted.edit_types and "edit_type" in table.column_names:
        keep &= np.isin(_texts(table, "edit_type"), list(wanted.edit_types))
    if wanted.verdicts and "reason" in table.column_names:
        reasons = _texts(table, "reason")
        keep &= np.isin(np.where(reasons == "", ACCEPTED, reasons), list(wanted.verdicts))
    if wanted.score and wanted.score in table.column_names:
        values = table[wanted.score].to_numpy().astype(float)
        keep &= (values >= wanted.low - ROUNDING) & (values <= wanted.high + ROUNDING)
    if words := wanted.words.strip().lower():
        said = [
            np.char.find(np.char.lower(_texts(table, name)), words) >= 0 for name in TEXTS if name in table.column_names
        ]
        keep &= np.any(said, axis=0) if said else False
    return np.flatnonzero(keep)


def _texts(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(pc.fill_null(table[name], "").to_pylist(), dtype=str)


def side_by_side(pairs: Pairs, number: int) -> tuple[Image.Image, str]:
    """Draws a pair as one picture, the original on the left, and writes its caption."""
    row = pairs.table.slice(number, 1).to_pylist()[0]
    original, edited = _images(pairs, number)
    height = max(original.height, edited.height)
    both = Image.new("RGB", (original.width + GAP + edited.width, height), "white")
    both.paste(original, (0, 0))
    both.paste(edited, (original.width + GAP, 0))
    if height < SMALL:
        factor = -(-SMALL // height)
        both = both.resize((both.width * factor, both.height * factor), Image.Resampling.NEAREST)
    scores = ", ".join(f"{SCORE_COLUMNS[name]} {row[name]:.2f}" for name in pairs.scores()[:4] if row[name] is not None)
    verdict = row.get("reason") or (ACCEPTED if row.get("accepted", True) else "rejected")
    told = [row.get("edit_prompt") or "", row.get("edit_type") or "", verdict if "accepted" in row else "", scores]
    return both, " · ".join(part for part in told if part)


def _images(pairs: Pairs, number: int) -> list[Image.Image]:
    row = pairs.pictures.row(number, pairs.columns)
    return [open_picture(row.picture(name) or b"") for name in pairs.columns]
