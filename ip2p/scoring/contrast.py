"""Contrast of the flatter of a pair's two images; an all-black image, for instance, has none."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ip2p.scoring.score import Score, pair_by_pair


def contrast(image: Image.Image) -> float:
    """Returns the standard deviation of the brightness, in [0, 0.5]; 0 for a flat image."""
    return float(np.asarray(image.convert("L"), dtype=np.float64).std() / 255)


def lesser_contrast(original: Image.Image, edited: Image.Image) -> float:
    """Returns the contrast of the flatter image."""
    return min(contrast(original), contrast(edited))


SCORES = (
    Score(
        name="contrast",
        column="contrast",
        title="contrast",
        meaning="Contrast of the flatter image",
        unit="standard deviation of the brightness",
        too_low="flat picture",
        is_similarity=False,
        prepare=lambda _: pair_by_pair(lesser_contrast),
        place=20,
    ),
)
