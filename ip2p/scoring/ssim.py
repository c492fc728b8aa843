"""Structural similarity of a pair's two images (Wang et al., 2004)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ip2p.scoring.score import Score, pair_by_pair

SSIM: dict[str, object] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
"""Settings of scikit-image, as in Wang et al. (2004)."""
SMALLEST_SIDE = 11
"""The window, in pixels."""


def ssim(original: Image.Image, edited: Image.Image) -> float:
    """Returns the structural similarity over the colours; NaN for images of two sizes or under 11 pixels."""
    from skimage.metrics import structural_similarity

    if original.size != edited.size or min(original.size) < SMALLEST_SIDE:
        return float("nan")
    pixels = np.asarray(original), np.asarray(edited)
    return float(structural_similarity(*pixels, channel_axis=-1, **SSIM))


SCORES = (
    Score(
        name="ssim",
        column="ssim",
        title="SSIM",
        meaning="Structural similarity of the two images",
        unit="SSIM",
        too_low="structure too unlike",
        too_high="structure too alike",
        is_similarity=True,
        setting="ssim",
        prepare=lambda _: pair_by_pair(ssim),
        place=30,
    ),
)
