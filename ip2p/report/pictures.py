"""Pictures of the report: thumbnails inside the page within a budget of bytes, and PNG sheets beside it.

In the page, small pictures stay lossless and are enlarged pixel by pixel; large ones are reduced.
"""

from __future__ import annotations

import base64
import io
import logging
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from ip2p.images import encode_png, open_picture
from ip2p.report.facts import UNREADABLE, HeldOutEdit, Pair, Place, edit_types_of, take_turns
from ip2p.report.reading import read_part
from ip2p.store import write_bytes

logger = logging.getLogger(__name__)

LARGEST_SIDE = 256
SMALL_SIDE = 96
"""Pictures up to this size are shown at twice their size."""
QUALITY = 82
ROWS_AT_ONCE = 32
BUFFER = 1 << 20
"""Bytes of a column that are read ahead; without a buffer parquet reads all of a row group's."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture inside the page and the size at which it is shown."""

    uri: str
    width: int
    height: int
    pixelated: bool
    alt: str = ""

    def described(self, alt: str) -> Thumbnail:
        """Returns the same with words for those who do not see it."""
        return replace(self, alt=alt)


@dataclass(slots=True)
class Album:
    """How many bytes of pictures a section may still hold, and how many cards did not fit."""

    bytes_left: int
    num_left_out: int = 0

    def takes(self, *pictures: Thumbnail) -> bool:
        """Takes all the pictures of a card, or none of them."""
        size = sum(len(picture.uri) for picture in pictures)
        if size > self.bytes_left:
            self.num_left_out += 1
            return False
        self.bytes_left -= size
        return True


def inline(content: bytes) -> Thumbnail | None:
    """Returns a picture as a data URI; None if it does not decode.

    The pictures are those that a run stored, upright and without transparency, so a large JPEG is decoded at a draft.
    """
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
    scale = 2 if small else 1
    uri = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Thumbnail(uri, image.width * scale, image.height * scale, small)


def read_pictures(places: Sequence[Place], column: str) -> list[Thumbnail | None]:
    """Reads thumbnails; None for a picture that is gone or does not decode."""
    pictures = {place: inline(content) for place, content in _read(places, column)}
    return [pictures.get(place) for place in places]


def read_images(places: Sequence[Place], column: str) -> list[bytes | None]:
    """Reads a few encoded pictures as they are; None for one that is gone."""
    contents = dict(_read(places, column))
    return [contents.get(place) for place in places]


def _read(places: Sequence[Place], column: str) -> Iterator[tuple[Place, bytes]]:
    indices: dict[Path, set[int]] = defaultdict(set)
    for place in places:
        indices[place.file].add(place.index)
    for file, inside in indices.items():
        try:
            for index, content in _read_file(file, inside, column):
                yield Place(file, index), content
        except UNREADABLE as error:
            logger.warning("left pictures of %s out of the report: %s", file.name, error)


def _read_file(file: Path, indices: set[int], column: str) -> Iterator[tuple[int, bytes]]:
    """Reads (index, picture) of some rows without ever holding more than ROWS_AT_ONCE."""
    with pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False) as opened:
        end = 0
        for group in range(opened.num_row_groups):
            start, end = end, end + opened.metadata.row_group(group).num_rows
            inside = indices.intersection(range(start, end))
            if not inside:
                continue
            for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=[group], columns=[column]):
                for index in sorted(inside.intersection(range(start, start + batch.num_rows))):
                    cell = batch[column][index - start].as_py()
                    if cell and cell.get("bytes"):
                        yield index, cell["bytes"]
                start += batch.num_rows
                if start > max(inside):
                    break


SIDE = 192
"""Pictures of the strips are shown at this size or the next whole multiple of their own below it."""
GAP = 14
PER_ROW = 7
INK = (40, 43, 48)


def write_strip(path: Path, edits: Sequence[HeldOutEdit], cases: Path | None, order: Sequence[str]) -> None:
    """Writes one held-out edit per edit type, the first that succeeded: input above output above the instruction."""
    if cases is None:
        return
    by_type = [[edit for edit in edits if edit.edit_type == kind] for kind in edit_types_of(edits, order)]
    firsts = [min(same, key=lambda edit: (edit.outcome != "success", edit.case)) for same in by_type]
    inputs = read_images([Place(cases, edit.case) for edit in firsts], "original_image")
    outputs = read_images([edit.place for edit in firsts], "edited_image")
    _write_columns(path, inputs, outputs, [edit.edit_prompt for edit in firsts])


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Writes accepted pairs, in turns from every edit type: original above edited above the instruction."""
    chosen = take_turns([pair for pair in pairs if pair.accepted], lambda pair: pair.edit_type, 2 * PER_ROW)
    originals, edited = (
        read_images([pair.place for pair in chosen], f"{side}_image") for side in ("original", "edited")
    )
    _write_columns(path, originals, edited, [pair.edit_prompt for pair in chosen])


def _write_columns(
    path: Path, uppers: Sequence[bytes | None], lowers: Sequence[bytes | None], instructions: Sequence[str]
) -> None:
    """Writes columns of two pictures and an instruction, PER_ROW in a row; nothing if there are none."""
    columns = zip(uppers, lowers, instructions, strict=True)
    blocks = [_column(upper, lower, words) for upper, lower, words in columns if upper and lower]
    if not blocks:
        return
    rows = [blocks[start : start + PER_ROW] for start in range(0, len(blocks), PER_ROW)]
    width = max(sum(block.width + GAP for block in row) for row in rows) + GAP
    sheet = Image.new("RGB", (width, sum(max(block.height for block in row) for row in rows) + GAP), "white")
    top = GAP
    for row in rows:
        left = GAP
        for block in row:
            sheet.paste(block, (left, top))
            left += block.width + GAP
        top += max(block.height for block in row)
    write_bytes(path, encode_png(sheet))


def _column(upper: bytes, lower: bytes, words: str) -> Image.Image:
    pictures = [_scaled(upper), _scaled(lower)]
    width, height = pictures[0].size
    lines = textwrap.wrap(words, max(10, int(width / 8)))[:3]
    block = Image.new("RGB", (width, 2 * (height + 6) + 20 * len(lines) + 18), "white")
    for index, image in enumerate(pictures):
        block.paste(image, (0, index * (height + 6)))
    brush, font = ImageDraw.Draw(block), ImageFont.load_default(15)
    for index, line in enumerate(lines):
        brush.text((width / 2, 2 * (height + 6) + 4 + 20 * index), line, fill=INK, font=font, anchor="ma")
    return block


def _scaled(content: bytes) -> Image.Image:
    image = open_picture(content)
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return image
    times = max(1, SIDE // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


EDITS_PER_SHEET = 16
SHEET_COLUMNS, SHEET_GAP = 4, 6


def write_edit_sheets(folder: Path, parts: Sequence[str]) -> None:
    """Writes the first edits of each type as `images/<model>-<edit type>.png` into an evaluation's folder.

    A sheet that is newer than the scores is left as it is.
    """
    by_type: dict[tuple[str, str], list[HeldOutEdit]] = defaultdict(list)
    for edit in (edit for name in parts for edit in read_part(folder, name)):
        by_type[edit.model, edit.edit_type].append(edit)
    for (model, kind), edits in by_type.items():
        path = folder / "images" / f"{model}-{kind.replace('/', '-').replace(' ', '-')}.png"
        try:
            if _is_newer(path, folder / "scores.parquet"):
                continue
            firsts = edits[:EDITS_PER_SHEET]
            inputs = read_images([Place(folder / "cases.parquet", edit.case) for edit in firsts], "original_image")
            outputs = read_images([edit.place for edit in firsts], "edited_image")
            sides = [
                _side_by_side(open_picture(before), open_picture(after))
                for before, after in zip(inputs, outputs, strict=True)
                if before and after
            ]
            if sides:
                write_bytes(path, encode_png(_tiled(sides)))
        except UNREADABLE as error:
            logger.warning("left out %s: %s", path.name, error)


def _is_newer(path: Path, source: Path) -> bool:
    return path.exists() and source.exists() and path.stat().st_mtime_ns >= source.stat().st_mtime_ns


def _side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    before.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    sides = Image.new("RGB", (2 * before.width, before.height))
    sides.paste(before, (0, 0))
    sides.paste(after.resize(before.size, Image.Resampling.LANCZOS), (before.width, 0))
    return sides


def _tiled(images: Sequence[Image.Image]) -> Image.Image:
    """Lays images out on white in rows of SHEET_COLUMNS, each in a cell of the largest one's size."""
    width, height = (max(size) + SHEET_GAP for size in zip(*(image.size for image in images), strict=True))
    columns, rows = min(SHEET_COLUMNS, len(images)), -(-len(images) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (columns * width + SHEET_GAP, rows * height + SHEET_GAP), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, SHEET_COLUMNS)
        sheet.paste(image, (SHEET_GAP + column * width, SHEET_GAP + row * height))
    return sheet
