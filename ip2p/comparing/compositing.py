"""Lays what changed onto the first picture of a pair, so that all else is exactly alike in both."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ip2p.comparing.area import changed_area
from ip2p.comparing.frame import Pixels, find_frame

MARGIN = 1 / 32
"""By how much the changed area is grown, as a share of the shorter side: it ends inside the edge of what changed."""
EDGE = 1 / 64
"""Standard deviation of the blur that softens its edge, as a share of the shorter side."""


def composite(before: Pixels, after: Pixels) -> Pixels:
    """Returns the second picture where it visibly changed and the first elsewhere.

    What an editor moved or grew as a whole is moved back first, if less differs then. ValueError for pictures of two
    sizes.
    """
    frame = find_frame(before, after)
    sides = [after] if frame is None else [after, frame.align(after)]
    areas = [changed_area(before, side, with_holes=True) for side in sides]
    area, aligned = min(zip(areas, sides, strict=True), key=lambda each: float(each[0].mean()))
    short = min(before.shape[:2])
    grown = ndimage.binary_dilation(area, iterations=max(1, round(MARGIN * short)))
    share = ndimage.gaussian_filter(grown.astype(float), max(1.0, EDGE * short))[..., None]
    return np.asarray((share * aligned + (1 - share) * before).round(), dtype=np.uint8)
