"""Pictures inside the page: thumbnails as WebP, read a few at a time, and a budget of bytes that they share.

Small pictures stay lossless and are enlarged pixel by pixel; large ones are reduced.
"""

from __future__ import annotations

import base64
import io
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from ip2p.evaluation.report.reading import UNREADABLE, Row

logger = logging.getLogger(__name__)

LARGEST_SIDE = 256
SMALL_SIDE = 96
"""Pictures up to this size are shown at twice their size."""
QUALITY = 82
ROWS_AT_ONCE = 32
BUFFER = 1 << 20
"""Bytes of a column that are read ahead; without a buffer parquet reads all of a row group's."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An inlined picture and the size at which it is shown."""

    uri: str
    width: int
    height: int
    pixelated: bool
    alt: str = ""

    def saying(self, alt: str) -> Picture:
        """The same with words for those who do not see it."""
        return replace(self, alt=alt)


@dataclass(slots=True)
class Album:
    """How many bytes of pictures a section may still hold, and what did not fit."""

    bytes_left: int
    num_left_out: int = 0

    def takes(self, *pictures: Picture) -> bool:
        """Counts pictures in, all or none of them."""
        size = sum(len(picture.uri) for picture in pictures)
        if size > self.bytes_left:
            self.num_left_out += 1
            return False
        self.bytes_left -= size
        return True


def inline(content: bytes) -> Picture | None:
    """A picture as a data URI; None where it does not decode."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))
            image = opened.convert("RGB")
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        logger.warning("left a picture out of the report: %s", error)
        return None
    small = max(image.size) <= SMALL_SIDE
    if not small:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=small, quality=QUALITY)
    shown = 2 if small else 1
    uri = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(uri, image.width * shown, image.height * shown, small)


def read_pictures(rows: Sequence[Row], columns: Sequence[str]) -> list[list[Picture] | None]:
    """Thumbnails of rows that say where their pictures are; None for a row whose pictures are gone."""
    found: dict[tuple[Path, int], list[Picture]] = {}
    for place, cells in _read_all(rows, columns):
        pictures = [picture for cell in cells if (picture := inline(cell)) is not None]
        if len(pictures) == len(columns):
            found[place] = pictures
    return [found.get((row["file"], row["index"])) for row in rows]


def read_images(rows: Sequence[Row], columns: Sequence[str]) -> list[list[bytes] | None]:
    """The encoded pictures of a few rows, as they are; None for a row whose pictures are gone."""
    found = dict(_read_all(rows, columns))
    return [found.get((row["file"], row["index"])) for row in rows]


def _read_all(rows: Sequence[Row], columns: Sequence[str]) -> Iterator[tuple[tuple[Path, int], list[bytes]]]:
    wanted: dict[Path, set[int]] = defaultdict(set)
    for row in rows:
        wanted[row["file"]].add(row["index"])
    for file, indices in wanted.items():
        try:
            for index, cells in _read_cells(file, indices, columns):
                yield (file, index), cells
        except UNREADABLE as error:
            logger.warning("left pictures of %s out of the report: %s", file.name, error)


def _read_cells(file: Path, wanted: set[int], columns: Sequence[str]) -> Iterator[tuple[int, list[bytes]]]:
    """(index, pictures) of the wanted rows, without ever holding more than some rows."""
    with pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False) as opened:
        start = 0
        for group in range(opened.num_row_groups):
            end = start + opened.metadata.row_group(group).num_rows
            if inside := {index - start for index in wanted if start <= index < end}:
                for index, cells in _read_group(opened, group, inside, columns):
                    yield start + index, cells
            start = end


def _read_group(
    opened: pq.ParquetFile, group: int, wanted: set[int], columns: Sequence[str]
) -> Iterator[tuple[int, list[bytes]]]:
    start, last = 0, max(wanted)
    for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=[group], columns=list(columns)):
        for index in sorted(wanted.intersection(range(start, start + batch.num_rows))):
            cells = [batch[name][index - start].as_py() for name in columns]
            if all(cell and cell.get("bytes") for cell in cells):
                yield index, [cell["bytes"] for cell in cells]
        start += batch.num_rows
        if start > last:
            return
