"""Pictures inside the page: thumbnails as WebP, read a few at a time, and a budget of bytes that they share.

Small pictures stay lossless and are enlarged pixel by pixel; large ones are reduced.
"""

from __future__ import annotations

import base64
import io
import logging
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from ip2p.evaluation.cases import Pixels
from ip2p.evaluation.metrics import types_of
from ip2p.images import open_pixels
from ip2p.report.charts import band_of, usable
from ip2p.report.facts import UNREADABLE, Row, RunFacts, take_turns
from ip2p.store import write_atomic

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


SIDE = 192
"""Pictures are shown at this many pixels or the next whole multiple of their own size below."""
GAP = 14
INK = (40, 43, 48)
MUTED = (110, 116, 126)


def write_strip(path: Path, facts: RunFacts) -> Path | None:
    """One held-out edit per edit type, the first that succeeded: input above, output below, instruction beneath."""
    kinds = types_of(facts.edits, list(facts.figures.get("by_type") or {}))
    rows = [_first_good([row for row in facts.edits if row["edit_type"] == kind]) for kind in kinds]
    if not rows or facts.cases is None:
        return None
    inputs = read_images([{"file": facts.cases, "index": row["case"]} for row in rows], ("original_image",))
    outputs = read_images(rows, ("edited_image",))
    columns = [
        ([one[0], other[0]], row["edit_prompt"])
        for row, one, other in zip(rows, inputs, outputs, strict=True)
        if one and other
    ]
    return _write(path, columns, 7)


def _first_good(rows: Sequence[Row]) -> Row:
    return min(rows, key=lambda row: (not row.get("success"), row["case"]))


def write_pairs(path: Path, facts: RunFacts, num: int = 14) -> Path | None:
    """Accepted pairs, in turns from every edit type: original above, edited below."""
    rows = take_turns([row for row in facts.pairs if row["accepted"]], lambda row: row["edit_type"], num)
    found = read_images(rows, ("original_image", "edited_image"))
    columns = [(images, row["edit_prompt"]) for row, images in zip(rows, found, strict=True) if images]
    return _write(path, columns, 7)


def _write(path: Path, columns: Sequence[tuple[Sequence[bytes], str]], per_row: int) -> Path | None:
    if not columns:
        return None
    blocks = [_column(pictures, words) for pictures, words in columns]
    rows = [blocks[start : start + per_row] for start in range(0, len(blocks), per_row)]
    width = max(sum(block.width + GAP for block in row) for row in rows) + GAP
    sheet = Image.new("RGB", (width, sum(max(block.height for block in row) for row in rows) + GAP), "white")
    top = GAP
    for row in rows:
        left = GAP
        for block in row:
            sheet.paste(block, (left, top))
            left += block.width + GAP
        top += max(block.height for block in row)
    write_png(path, np.asarray(sheet))
    return path


def _column(pictures: Sequence[bytes], words: str) -> Image.Image:
    shown = [_enlarged(content) for content in pictures]
    width, height = shown[0].size
    font = ImageFont.load_default(15)
    lines = textwrap.wrap(words, max(10, int(width / 8)))[:3]
    block = Image.new("RGB", (width, len(shown) * (height + 6) + 20 * len(lines) + 18), "white")
    for index, image in enumerate(shown):
        block.paste(image, (0, index * (height + 6)))
    brush = ImageDraw.Draw(block)
    for index, line in enumerate(lines):
        place = (width / 2, len(shown) * (height + 6) + 4 + 20 * index)
        brush.text(place, line, fill=INK, font=font, anchor="ma")
    return block


def _enlarged(content: bytes) -> Image.Image:
    image = Image.fromarray(open_pixels(content))
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return image
    times = max(1, SIDE // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def write_curve(path: Path, facts: RunFacts) -> Path | None:
    """CLIP image similarity against direction over the image guidance scale, with 95 % bands."""
    points = usable({"": facts.figures.get("curve") or []}).get("")
    if not points:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    _draw_curve(figure.add_subplot(), points)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")

    def write(file: Any) -> None:
        file.write(buffer.getvalue())

    write_atomic(path, write)
    return path


def _draw_curve(axes: Any, points: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    xs, ys = [point["clip_direction"] for point in points], [point["clip_image"] for point in points]
    outlines = [Outline([*some, some[0]], closed=True) for some in band_of(points)]
    shade = PathPatch(Outline.make_compound_path(*outlines))
    shade.set(facecolor="#2766d8", alpha=0.16, linewidth=0)
    axes.add_patch(shade)
    axes.plot(xs, ys, color="#2766d8", linewidth=2, marker="o", markersize=5)
    axes.autoscale_view()
    for point, x, y in zip(points, xs, ys, strict=True):
        axes.annotate(
            f"{point['image_guidance_scale']:g}", (x, y), xytext=(7, 6), textcoords="offset points", fontsize=9
        )
    axes.set_xlabel("CLIP direction similarity (the edit follows the text)")
    axes.set_ylabel("CLIP image similarity")
    axes.set_title(f"Image guidance scale, {points[0]['n']} edits, 95 % bands", fontsize=10, color="#5c6370")
    axes.grid(color="#e2e3e0")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def write_png(path: Path, pixels: Pixels) -> None:
    """Writes an image atomically."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)

    def write(file: Any) -> None:
        file.write(buffer.getvalue())

    write_atomic(path, write)
