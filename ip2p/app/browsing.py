"""Browses pairs of a run, of parquet files or of the hub, by edit type, verdict, score and words. No gradio here.

Only texts and scores are kept in memory; pictures are read from their row when they are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ip2p.images import open_picture
from ip2p.scoring import SCORE_COLUMNS
from ip2p.sources.columns import image_columns
from ip2p.sources.files import read_texts
from ip2p.sources.location import Location, data_files, locate
from ip2p.sources.rows import ListTable, ParquetTable, Row, Table, stream_rows
from ip2p.store import RunFolder

TEXTS = ("original_prompt", "edit_prompt", "edited_prompt", "edit_type")
COLUMNS = (*TEXTS, "accepted", "reason", *SCORE_COLUMNS)
ACCEPTED = "accepted"
HUB_ROWS = 200
"""Rows that are fetched from a hub dataset."""
WAY_OUT = "Give a run folder, a folder of parquet files or a hub id (owner/name)."
ROUNDING = 1e-5
"""Cosines of equal pictures are slightly above 1."""
GAP = 4
SMALL = 192
"""Height below which pictures are enlarged, each pixel to a square."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """All rows: their texts and scores, and where their pictures are read from."""

    table: pa.Table
    columns: tuple[str, str]
    """Names of the columns of the original and of the edited image."""
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


def open_pairs(source: str) -> Pairs:
    """Opens a run, a folder or a file of parquet, a pattern or a hub dataset. ValueError with the way out."""
    location = locate(source, way_out=WAY_OUT)
    if location.kind == "hub":
        return _open_hub(location)
    if location.kind == "path" and (location.path / "pairs").is_dir():
        files = RunFolder(location.path).shards("pairs")  # rejected pairs too, if the run kept them
    else:
        files = data_files(location)
    if not files:
        raise ValueError(f"{source} holds no parquet file of pairs. {WAY_OUT}")
    pictures = ParquetTable(files)
    parts = [
        _numbered(read_texts(file, [name for name in COLUMNS if name in present]))
        for file, present in pictures.names_by_file.items()
    ]
    table = pa.concat_tables(parts, promote_options="default")
    return Pairs(table, image_columns(pictures.names, where=str(files[0].parent)), pictures)


def _numbered(table: pa.Table) -> pa.Table:
    """Adds the row's number, without which a table of none of our columns would have no rows."""
    return table.append_column("row", pa.array(range(len(table)), pa.int64()))


def _open_hub(location: Location) -> Pairs:
    values = list(stream_rows(location, limit=HUB_ROWS, way_out=WAY_OUT, split="train"))
    pictures = ListTable([Row(row, f"{location.word} row {number}") for number, row in enumerate(values, start=1)])
    texts = [
        {"row": number, **{key: row[key] for key in (*TEXTS, *SCORE_COLUMNS) if key in row}}
        for number, row in enumerate(values)
    ]
    return Pairs(pa.Table.from_pylist(texts), image_columns(pictures.names, where=location.word), pictures)


def find(
    pairs: Pairs,
    *,
    edit_types: Sequence[str] = (),
    verdicts: Sequence[str] = (),
    score: str | None = None,
    low: float = -1.0,
    high: float = 1.0,
    words: str = "",
) -> np.ndarray:
    """Returns the numbers of the rows that match all criteria, in order; an empty criterion matches every row.

    `verdicts` are `accepted` or reasons, `low` and `high` bound the score, and `words` are looked for in all texts.
    """
    table = pairs.table
    keep = np.ones(len(table), dtype=bool)
    if edit_types and "edit_type" in table.column_names:
        keep &= np.isin(_texts(table, "edit_type"), list(edit_types))
    if verdicts and "reason" in table.column_names:
        reasons = _texts(table, "reason")
        keep &= np.isin(np.where(reasons == "", ACCEPTED, reasons), list(verdicts))
    if score and score in table.column_names:
        values = table[score].to_numpy().astype(float)
        keep &= (values >= low - ROUNDING) & (values <= high + ROUNDING)
    if words := words.strip().lower():
        texts = [_texts(table, name) for name in TEXTS if name in table.column_names]
        matches = [np.char.find(np.char.lower(text), words) >= 0 for text in texts]
        keep &= np.any(matches, axis=0) if matches else False
    return np.flatnonzero(keep)


def _texts(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(pc.fill_null(table[name], "").to_pylist(), dtype=str)


def side_by_side(pairs: Pairs, number: int) -> tuple[Image.Image, str]:
    """Draws a pair as one picture, the original on the left; returns it with a caption."""
    row = pairs.table.slice(number, 1).to_pylist()[0]
    images = pairs.pictures.row(number, pairs.columns)
    original, edited = (open_picture(images.picture(name) or b"") for name in pairs.columns)
    height = max(original.height, edited.height)
    both = Image.new("RGB", (original.width + GAP + edited.width, height), "white")
    both.paste(original, (0, 0))
    both.paste(edited, (original.width + GAP, 0))
    if height < SMALL:
        factor = -(-SMALL // height)
        both = both.resize((both.width * factor, both.height * factor), Image.Resampling.NEAREST)
    scores = ", ".join(f"{SCORE_COLUMNS[name]} {row[name]:.2f}" for name in pairs.scores()[:4] if row[name] is not None)
    verdict = row.get("reason") or (ACCEPTED if row.get("accepted", True) else "rejected")
    parts = (row.get("edit_prompt"), row.get("edit_type"), verdict if "accepted" in row else "", scores)
    return both, " · ".join(part for part in parts if part)
