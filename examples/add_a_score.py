"""Adds a filter score: the sharpness of the blurrier image of a pair.

This file is a complete plug-in. Copied to `ip2p/scoring/sharpness.py`, it is measured for every candidate, stored in
the column `sharpness`, and shown in the report and the dataset card. To reject blurry pairs, set its bound in a config
file: `{"filtering": {"thresholds": {"further": {"sharpness": 0.02}}}}`.

Run as a script, it measures the shipped sample of pairs: `python examples/add_a_score.py`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from ip2p.scoring.score import Batch, Score


def sharpness(image: Image.Image) -> float:
    """Returns the standard deviation of the brightness's Laplacian, on a scale of 0 to 1; 0 for a flat image."""
    grey = np.asarray(image.convert("L"), dtype=np.float64) / 255
    neighbours = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((neighbours - 4 * grey[1:-1, 1:-1]).std())


def measure(batch: Batch) -> list[float]:
    """Returns the lesser sharpness of the two images of each pair."""
    pairs = zip(batch.originals, batch.edited, strict=True)
    return [min(sharpness(original), sharpness(edited)) for original, edited in pairs]


SCORES = (
    Score(
        name="sharpness",
        column="sharpness",
        title="sharpness",
        meaning="Sharpness of the blurrier image",
        unit="standard deviation of the Laplacian",
        too_low="blurry image",
        is_similarity=False,
        prepare=lambda _: measure,
    ),
)


def main() -> None:
    """Prints the sharpness of the shipped pairs, from the blurriest to the sharpest."""
    import pyarrow.parquet as pq

    from ip2p.images import open_picture
    from ip2p.presets import data_folder

    (shard,) = (data_folder() / "sample").glob("*.parquet")
    rows = pq.read_table(shard, columns=["edit_prompt", "original_image", "edited_image"]).to_pylist()
    scores = []
    for row in rows:
        images = [open_picture(row[side]["bytes"]) for side in ("original_image", "edited_image")]
        scores.append((min(map(sharpness, images)), row["edit_prompt"]))
    for score, instruction in sorted(scores):
        print(f"{score:.3f}  {instruction}")


if __name__ == "__main__":
    main()
