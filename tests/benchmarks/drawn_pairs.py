"""Draws pairs of any size as a training set: `python -m tests.benchmarks.drawn_pairs OUT --num 256 --size 256`.

The scenes are those of the shapes domain, enlarged, with an instruction each; a benchmark reads, decodes and encodes
them as it would photographs. The same numbers give the same bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ip2p.images import IMAGE_TYPE, Array, encode_image
from ip2p.shapes.domain import ShapesDomain
from ip2p.shapes.scene import render

IMAGES = ("original_image", "edited_image")
FEATURES = {name: {"_type": "Image"} for name in IMAGES} | {"edit_prompt": {"dtype": "string", "_type": "Value"}}
SCHEMA = pa.schema(
    [*((name, IMAGE_TYPE) for name in IMAGES), ("edit_prompt", pa.string())],
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)
GRAIN = 8.0
"""Deviation of the noise on a picture, without which its file would be a fraction of a photograph's."""


def enlarged(pixels: Array, size: int, seed: int) -> bytes:
    """A drawing at this size, with grain, as a JPEG."""
    picture = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS), dtype=np.float32)
    grain = np.random.default_rng(seed).normal(0, GRAIN, picture.shape)
    return encode_image(np.clip(picture + grain, 0, 255).astype(np.uint8), "jpeg", 95)


def write_drawn_pairs(folder: Path, num: int, size: int, seed: int = 0) -> Path:
    """Writes `data/train-00000-of-00001.parquet` with the columns that a dataset of ours has."""
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(ShapesDomain().draw_cases(num, seed=seed)):
        files = [{"bytes": enlarged(render(scene), size, number), "path": None} for scene in case.payload]
        rows.append({**dict(zip(IMAGES, files, strict=True)), "edit_prompt": case.edit_prompt})
    (folder / "data").mkdir(parents=True, exist_ok=True)
    file = folder / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)
    return folder


def main() -> None:
    """Writes the pairs that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num", type=int, default=256)
    parser.add_argument("--size", type=int, default=256, help="pixels on a side")
    options = parser.parse_args()
    write_drawn_pairs(options.folder, options.num, options.size)


if __name__ == "__main__":
    main()
