"""What tells a pair's two images from one another, or from nothing, without a text: contrast, SSIM, DINOv2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ip2p.models.loading import ImageModel

SSIM: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
"""As in Wang et al. (2004)."""
SMALLEST_SIDE = 11
"""Pixels of the window."""


def contrast(image: Image.Image) -> float:
    """Standard deviation of the brightness, in [0, 0.5]; 0 of a flat image."""
    return float(np.asarray(image.convert("L"), dtype=np.float64).std() / 255)


def ssim(original: Image.Image, edited: Image.Image) -> float:
    """Structural similarity over the colours, by `SSIM`; NaN for images under 11 pixels."""
    from skimage.metrics import structural_similarity

    one, other = np.asarray(original), np.asarray(edited)
    if one.shape != other.shape or min(one.shape[:2]) < SMALLEST_SIDE:
        return float("nan")
    return float(structural_similarity(one, other, channel_axis=-1, **SSIM))  # type: ignore[no-untyped-call]


def image_similarities(
    model: ImageModel, originals: Sequence[Image.Image], edited: Sequence[Image.Image], *, batch_size: int
) -> list[float]:
    """Cosine similarities of the first token's states, one per pair; in [-1, 1]."""
    images, found = [*originals, *edited], []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            pixels = model.processor(images=images[start : start + batch_size], return_tensors="pt").pixel_values
            found.append(model.model(pixels.to(model.device)).last_hidden_state[:, 0].float().cpu())
    one, other = torch.cat(found).chunk(2)
    return F.cosine_similarity(one, other, dim=-1).tolist()
