"""How far the changed part of a pair moved: an edit should leave things where they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from ip2p.scoring.score import Score, pair_by_pair

CHANGED = 0.25
"""Share of the largest difference of two images above which a place has changed."""
LEAST_CHANGE = 20.0
"""RGB distance below which nothing has changed."""
STANDS_OUT = 0.3
"""Share of the largest distance from the surroundings above which a place stands out."""
SMOOTHING, MARGIN = 3, 2
"""Pixels over which differences are averaged, and around the changed part that are its surroundings."""

Floats = npt.NDArray[np.float64]


def shift(original: Image.Image, edited: Image.Image) -> float:
    """Returns the distance between the centres of what stands out in the changed part, as a share of the shorter side.

    The changed part is the smallest rectangle around the places that differ; what stands out from the colour along its
    border is weighed by its distance from that colour. 0 if nothing changed, NaN for images of two sizes.
    """
    if original.size != edited.size:
        return float("nan")
    before, after = (np.asarray(image, float) for image in (original, edited))
    difference = ndimage.uniform_filter(np.linalg.norm(before - after, axis=-1), SMOOTHING)
    if difference.max() < LEAST_CHANGE:
        return 0.0
    ((rows, columns),) = ndimage.find_objects((difference > CHANGED * difference.max()).astype(int))
    part = tuple(slice(max(0, side.start - MARGIN), side.stop + MARGIN) for side in (rows, columns))
    moved = _centre(before[part]) - _centre(after[part])
    return float(np.hypot(*moved) / min(original.size))


def _centre(part: Floats) -> Floats:
    """Returns the (row, column) of the centre of what stands out, or the middle of a plain part."""
    border = np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]])
    distance = np.linalg.norm(part - np.median(border, axis=0), axis=-1)
    weight = np.where(distance > STANDS_OUT * distance.max(), distance, 0)
    return np.array(ndimage.center_of_mass(weight if weight.any() else np.ones_like(weight)))


SCORES = (
    Score(
        name="shift",
        column="shift",
        title="shift",
        meaning="How far what stands out in the changed part moved",
        unit="share of the shorter side",
        too_high="the changed part moved",
        is_similarity=True,
        setting="shift",
        prepare=lambda _: pair_by_pair(shift),
    ),
)
