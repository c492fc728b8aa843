"""LPIPS inside and outside the area that changed, which the pair itself shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

from ip2p.comparing import Mask
from ip2p.config import ScoringConfig
from ip2p.scoring.regions import areas_of
from ip2p.scoring.score import Batch, Measure, Score

Distances = tuple[float, float]
"""Mean distances inside and outside the changed area; NaN for an area that is empty."""
NONE: Distances = (math.nan, math.nan)
"""Of pictures that cannot be compared."""


@cache
def comparison(net: str, device: str) -> Callable[[Image.Image, Image.Image, Mask | None], Distances]:
    """Returns how a pair is compared: one and the same function for one network, so that both scores share it."""
    from ip2p.models.perceptual import SMALLEST_SIDE, lpips_map

    def compare(original: Image.Image, edited: Image.Image, changed: Mask | None) -> Distances:
        if changed is None or min(original.size) < SMALLEST_SIDE:
            return NONE
        before, after = np.asarray(original), np.asarray(edited)
        distances = lpips_map(net, device, before, after, setting="scoring.lpips")
        inside, outside = (float(distances[area].mean()) if area.any() else math.nan for area in (changed, ~changed))
        return inside, outside

    return compare


def _score(name: str, title: str, meaning: str, place: int, part: int, too_low: str = "", too_high: str = "") -> Score:
    def prepare(config: ScoringConfig) -> Measure:
        from ip2p.models.perceptual import load_lpips

        load_lpips(str(config.lpips), config.device, setting="scoring.lpips")  # fails before anything is rendered
        compare = comparison(str(config.lpips), config.device)

        def measure(batch: Batch) -> list[float]:
            return [distances[part] for distances in batch.once(compare, areas_of(batch))]

        return measure

    return Score(
        name=name,
        column=name,
        title=title,
        meaning=meaning,
        unit="LPIPS",
        is_similarity=True,
        setting="lpips",
        prepare=prepare,
        place=place,
        too_low=too_low,
        too_high=too_high,
    )


SCORES = (
    _score(
        "lpips_inside", "LPIPS inside", "LPIPS inside the changed area", 125, 0, too_low="inside too alike for LPIPS"
    ),
    _score(
        "lpips_outside",
        "LPIPS outside",
        "LPIPS outside the changed area",
        126,
        1,
        too_high="outside not kept for LPIPS",
    ),
)
