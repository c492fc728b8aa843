"""Plain PNG sheets of held-out edits in the evaluation's folder: a row of pairs, before left and after right."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from ip2p.evaluation.cases import Pixels
from ip2p.images import open_pixels
from ip2p.report.facts import UNREADABLE, Row
from ip2p.report.pictures import LARGEST_SIDE, read_images, write_png

logger = logging.getLogger(__name__)

EDITS_PER_SHEET = 16


def write_edit_sheets(folder: Path, figures: Row) -> list[Path]:
    """Writes `images/<model>-<edit type>.png` into an evaluation's folder and returns the paths.

    A sheet has the first edits of its type; one that is newer than the scores is left as it is.
    """
    paths = []
    for (model, kind), rows in _first_edits(folder, figures).items():
        path = folder / "images" / f"{model}-{kind.replace('/', '-').replace(' ', '-')}.png"
        try:
            if not _is_newer(path, folder / "scores.parquet"):
                write_png(path, tile(_read_pairs(folder / "cases.parquet", rows), 4))
            paths.append(path)
        except UNREADABLE as error:
            logger.warning("left out %s: %s", path.name, error)
    return paths


def _is_newer(path: Path, source: Path) -> bool:
    return path.exists() and source.exists() and path.stat().st_mtime_ns >= source.stat().st_mtime_ns


def _read_pairs(cases: Path, rows: Sequence[Row]) -> list[Pixels]:
    """Reads the edits whose pictures are all there, each as one picture. ValueError if there are none."""
    inputs = read_images([{"file": cases, "index": row["case"]} for row in rows], ("original_image",))
    outputs = read_images(rows, ("edited_image",))
    sides = [(before[0], after[0]) for before, after in zip(inputs, outputs, strict=True) if before and after]
    if not sides:
        raise ValueError("its pictures are gone")
    return [_side_by_side(open_pixels(before), open_pixels(after)) for before, after in sides]


def _first_edits(folder: Path, figures: Row) -> dict[tuple[str, str], list[Row]]:
    """Rows of the first edits of every editor and edit type, with the places of their pictures."""
    chosen: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for name in figures.get("parts") or ():
        file = folder / "edits" / f"{name}.parquet"
        try:
            table = pq.read_table(folder / "parts" / file.name, columns=["model", "case", "edit_type"])
        except UNREADABLE as error:
            logger.warning("left out the sheets of %s: %s", name, error)
            continue
        for index, row in enumerate(table.to_pylist()):
            rows = chosen[row["model"], str(row["edit_type"])]
            if len(rows) < EDITS_PER_SHEET:
                rows.append({"case": row["case"], "file": file, "index": index})
    return chosen


def _side_by_side(before: Pixels, after: Pixels) -> Pixels:
    height, width = before.shape[:2]
    scale = min(1.0, LARGEST_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.hstack([_resized(before, size), _resized(after, size)])


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def tile(images: Sequence[Pixels], columns: int, gap: int = 6) -> Pixels:
    """Lays images out on white in rows of `columns`, each in a cell of the largest one's size."""
    height = max(image.shape[0] for image in images) + gap
    width = max(image.shape[1] for image in images) + gap
    rows = -(-len(images) // columns)
    page = np.full((rows * height + gap, min(columns, len(images)) * width + gap, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = gap + number // columns * height, gap + number % columns * width
        page[top : top + image.shape[0], left : left + image.shape[1]] = image
    return page
