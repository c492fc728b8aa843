"""How alike a pair's two images are inside and outside the area that changed, which the pair itself shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ip2p.comparing import Frame, Mask, changed_area
from ip2p.scoring.frame import frame_of
from ip2p.scoring.score import Batch, Measure, Score
from ip2p.scoring.ssim import SMALLEST_SIDE, SSIM


@dataclass(frozen=True, slots=True)
class Regions:
    """The similarities of a pair inside and outside the changed area; NaN for an area that is empty."""

    changed_share: float
    ssim_inside: float = math.nan
    ssim_outside: float = math.nan
    colour_inside: float = math.nan
    """Mean of CIEDE2000."""
    colour_outside: float = math.nan


NONE = Regions(math.nan)
"""Of pictures that cannot be compared."""


def area_of(original: Image.Image, edited: Image.Image, frame: Frame | None) -> Mask | None:
    """Returns the area that changed, once the one image is aligned with the other; None if they cannot be compared."""
    if original.size != edited.size or min(original.size) < SMALLEST_SIDE:
        return None
    return changed_area(np.asarray(original), np.asarray(edited), frame)


def areas_of(batch: Batch) -> list[Mask | None]:
    """Returns the area of each pair; scores of the frame and of the area share what they find."""
    return batch.once(area_of, batch.once(frame_of))


def compare_regions(original: Image.Image, edited: Image.Image, changed: Mask | None) -> Regions:
    """Compares the two images as they are, inside and outside the area that changed."""
    from skimage.color import deltaE_ciede2000, rgb2lab
    from skimage.metrics import structural_similarity

    if changed is None:
        return NONE
    before, after = np.asarray(original), np.asarray(edited)
    _, alike = structural_similarity(before, after, channel_axis=-1, full=True, **SSIM)
    colours = deltaE_ciede2000(rgb2lab(before), rgb2lab(after))
    means = [_mean(values, area) for values in (alike.mean(-1), colours) for area in (changed, ~changed)]
    return Regions(float(changed.mean()), *means)


def _mean(values: npt.NDArray[np.float64], area: Mask) -> float:
    return float(values[area].mean()) if area.any() else math.nan


def _measure(read: Callable[[Regions], float]) -> Measure:
    def measure(batch: Batch) -> list[float]:
        return [read(regions) for regions in batch.once(compare_regions, areas_of(batch))]

    return measure


def _score(name: str, title: str, meaning: str, unit: str, place: int, too_low: str = "", too_high: str = "") -> Score:
    """Declares the score of a field of `Regions`."""
    return Score(
        name=name,
        column=name,
        title=title,
        meaning=meaning,
        unit=unit,
        is_similarity=True,
        setting="regions",
        prepare=lambda _: _measure(lambda regions: float(getattr(regions, name))),
        place=place,
        too_low=too_low,
        too_high=too_high,
    )


SCORES = (
    _score(
        "changed_share",
        "changed share",
        "Share of the picture that changed",
        "share",
        120,
        too_low="too little changed",
        too_high="too much changed",
    ),
    _score(
        "ssim_inside",
        "SSIM inside",
        "Structural similarity inside the changed area",
        "SSIM",
        121,
        too_high="structure inside too alike",
    ),
    _score(
        "ssim_outside",
        "SSIM outside",
        "Structural similarity outside the changed area",
        "SSIM",
        122,
        too_low="structure outside not kept",
    ),
    _score(
        "colour_inside",
        "colour inside",
        "Colour difference inside the changed area",
        "CIEDE2000",
        123,
        too_low="colours inside too alike",
    ),
    _score(
        "colour_outside",
        "colour outside",
        "Colour difference outside the changed area",
        "CIEDE2000",
        124,
        too_high="colours outside not kept",
    ),
)
