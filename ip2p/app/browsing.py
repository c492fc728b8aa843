"""Pairs of a run, of a folder of parquet files or of the hub, by edit type, verdict, score and words. No gradio here.

Only texts and scores are held; pictures are read from their row when they are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from ip2p.console import first_line
from ip2p.images import decode_image
from ip2p.scoring import SCORE_COLUMNS
from ip2p.sources.columns import KNOWN_SCHEMAS
from ip2p.store import RunFolder, visible_parquet

TEXTS = ("original_prompt", "edit_prompt", "edited_prompt", "edit_type")
VERDICTS = ("accepted", "reason")
SIDES = [tuple(schema[side] for schema in KNOWN_SCHEMAS.values()) for side in ("original_image", "edited_image")]
"""Names of the image columns in well-known datasets, ours first."""
ACCEPTED = "accepted"
FROM_HUB = 200
"""Rows that are fetched of a hub dataset."""
ROUNDING = 1e-5
"""Cosines of equal pictures come out a little over 1."""
GAP = 4
SMALL = 192
"""Pictures under so many pixels are shown larger, each pixel a square."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """All rows without their pictures; `file` and `row` say where those are."""

    table: pa.Table
    files: tuple[Path, ...]
    columns: tuple[str, str]
    """Of the original and of the edited image."""
    rows: tuple[dict[str, Any], ...] = ()
    """Of a hub dataset, pictures and all."""

    def choices(self, column: str) -> list[str]:
        """What a column of texts has, most frequent first."""
        if column not in self.table.column_names:
            return []
        counts = pc.value_counts(self.table[column]).to_pylist()
        return [row["values"] for row in sorted(counts, key=lambda row: -row["counts"]) if row["values"]]

    def scores(self) -> list[str]:
        """Score columns that have numbers."""
        names = [name for name in SCORE_COLUMNS if name in self.table.column_names]
        return [name for name in names if self.table[name].null_count < len(self.table)]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for."""

    edit_types: Sequence[str] = ()
    verdicts: Sequence[str] = ()
    """`accepted` or reasons; any where there are none."""
    score: str | None = None
    low: float = -1.0
    high: float = 1.0
    words: str = ""
    """In any of the texts."""


def open_pairs(source: str) -> Pairs:
    """ValueError with the way out where there are none."""
    path = Path(source).expanduser()
    if path.is_dir():
        files = _files_of(path)
        if not files:
            raise ValueError(f"{source} holds no parquet file of pairs. Give a run or a folder of parquet files.")
        return _open_files(files)
    if source.count("/") == 1 and not source.startswith((".", "~", "/")):
        return _open_hub(source)
    raise ValueError(f"{source} does not exist. Give a run folder, a folder of parquet files or a hub id (owner/name).")


def _files_of(folder: Path) -> list[Path]:
    """A run's pairs, which may hold rejected ones too; else every parquet file."""
    if (folder / "pairs").is_dir():
        return RunFolder(folder).shards("pairs")
    return visible_parquet(folder)


def _open_files(files: Sequence[Path]) -> Pairs:
    names = pq.read_schema(files[0]).names
    columns = _image_columns(names, str(files[0].parent))
    wanted = [name for name in (*TEXTS, *VERDICTS, *SCORE_COLUMNS) if name in names]
    parts = []
    for number, file in enumerate(files):
        part = pq.read_table(file, columns=wanted)
        part = part.append_column("file", pa.array([number] * len(part), pa.int64()))
        parts.append(part.append_column("row", pa.array(range(len(part)), pa.int64())))
    return Pairs(pa.concat_tables(parts, promote_options="default"), tuple(files), columns)


def _open_hub(name: str) -> Pairs:
    from itertools import islice

    from datasets import load_dataset

    try:
        rows = tuple(islice(load_dataset(name, split="train", streaming=True), FROM_HUB))
    except Exception as error:  # the hub's client raises many kinds
        first = first_line(error)
        raise ValueError(f"could not load {name}: {first} Give a run folder or a folder of parquet files.") from error
    columns = _image_columns(list(rows[0]) if rows else [], name)
    texts = [
        {key: row[key] for key in (*TEXTS, *SCORE_COLUMNS) if key in row} | {"row": n} for n, row in enumerate(rows)
    ]
    return Pairs(pa.Table.from_pylist(texts), (), columns, rows)


def _image_columns(names: Sequence[str], where: str) -> tuple[str, str]:
    found = [next((name for name in known if name in names), None) for known in SIDES]
    if None in found:
        have = ", ".join(names) or "none"
        raise ValueError(f"{where} has no columns original_image and edited_image; its columns are: {have}.")
    return str(found[0]), str(found[1])


def find(pairs: Pairs, wanted: Wanted) -> np.ndarray:
    """Numbers of the rows that are looked for, in their order."""
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
    """A pair as one picture, the original on the left, and its caption."""
    row = pairs.table.slice(number, 1).to_pylist()[0]
    original, edited = _images(pairs, row)
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


def _images(pairs: Pairs, row: dict[str, Any]) -> list[Image.Image]:
    if pairs.rows:
        found = pairs.rows[row["row"]]
        return [_decoded(found[name]) for name in pairs.columns]
    file, group, offset = _place(str(pairs.files[row["file"]]), row["row"])
    table = _row_group(file, group, pairs.columns)
    return [_decoded(table[name][offset].as_py()) for name in pairs.columns]


def _decoded(cell: Any) -> Image.Image:
    if isinstance(cell, Image.Image):
        return cell.convert("RGB")
    return decode_image(cell["bytes"])


def _place(file: str, row: int) -> tuple[str, int, int]:
    metadata = _metadata(file)
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).num_rows
        if row < size:
            return file, group, row
        row -= size
    raise ValueError(f"{file} has become shorter since it was opened. Open it again.")


@lru_cache(maxsize=64)
def _metadata(file: str) -> pq.FileMetaData:
    return pq.read_metadata(file)


@lru_cache(maxsize=2)
def _row_group(file: str, group: int, columns: tuple[str, str]) -> pa.Table:
    with pq.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=list(columns))
