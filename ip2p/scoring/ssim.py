"""Structural similarity of a pair's two images (Wang et al., 2004)."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ip2p.scoring.score import Batch, Score

SSIM: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
"""As in Wang et al. (2004)."""
SMALLEST_SIDE = 11
"""Pixels of the window."""


def ssim(original: Image.Image, edited: Image.Image) -> float:
    """Returns the structural similarity over the colours, by `SSIM`; NaN for images under 11 pixels."""
    from skimage.metrics import structural_similarity

    one, other = np.asarray(original), np.asarray(edited)
    if one.shape != other.shape or min(one.shape[:2]) < SMALLEST_SIDE:
        return float("nan")
    return float(structural_similarity(one, other, channel_axis=-1, **SSIM))  # type: ignore[no-untyped-call]


def measure(batch: Batch) -> list[float]:
    """Returns the structural similarity of each pair."""
    return [ssim(original, edited) for original, edited in zip(batch.originals, batch.edited, strict=True)]


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
        prepare=lambda _: measure,
        place=30,
    ),
)
