"""Plain PNG sheets of held-out edits, for whoever opens the folder: a row per edit, before left and after right."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.images import open_pixels
from ip2p.store import write_atomic

EDITS_PER_SHEET = 16
LARGEST_SIDE = 256


def write_sheets(folder: Path, cases: Sequence[EditCase], parts: Sequence[Path]) -> list[Path]:
    """Writes `<model>-<edit type>.png`, each with the first edits of that type, and returns the paths."""
    chosen: dict[tuple[str, str], list[Pixels]] = defaultdict(list)
    for part in parts:
        for row in pq.read_table(part, columns=["model", "case", "edited_image"]).to_pylist():
            case = cases[row["case"]]
            pairs = chosen[row["model"], case.edit_type]
            if len(pairs) < EDITS_PER_SHEET:
                pairs.append(_side_by_side(case.original_image, open_pixels(row["edited_image"]["bytes"])))
    paths = []
    for (model, kind), pairs in chosen.items():
        path = folder / f"{model}-{kind.replace('/', '-').replace(' ', '-')}.png"
        write_png(path, tile(pairs, 4))
        paths.append(path)
    return paths


def _side_by_side(left: Pixels, right: Pixels) -> Pixels:
    height, width = left.shape[:2]
    scale = min(1.0, LARGEST_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.hstack([_resized(left, size), _resized(right, size)])


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def tile(images: Sequence[Pixels], columns: int, gap: int = 6) -> Pixels:
    """Lays images out on white, so many to a row, each in a cell of the largest one's size."""
    height = max(image.shape[0] for image in images) + gap
    width = max(image.shape[1] for image in images) + gap
    rows = -(-len(images) // columns)
    sheet = np.full((rows * height + gap, min(columns, len(images)) * width + gap, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = gap + number // columns * height, gap + number % columns * width
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def write_png(path: Path, pixels: Pixels) -> None:
    """Writes an image atomically."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)

    def write(file: Any) -> None:
        file.write(buffer.getvalue())

    write_atomic(path, write)
