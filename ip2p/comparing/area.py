"""Finds the area of a pair's pictures that changed, from the pictures alone: the one place that decides this."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ip2p.comparing.frame import Frame, Pixels

Mask = npt.NDArray[np.bool_]
"""(height, width)."""

SMOOTHING, LEAST_SMOOTHING = 1 / 64, 1.5
"""Standard deviation of the blur of differences: a share of the shorter side, but at least so many pixels."""
LEAST_DIFFERENCE, SURE_DIFFERENCE = 6.0, 20.0
"""Distances in CIELAB between which Otsu's threshold may lie: below, a codec makes them; above, anybody sees them."""
SMALLEST_PART = 0.001
"""Share of the picture below which a separate part is noise."""


def changed_area(before: Pixels, after: Pixels, frame: Frame | None = None, *, with_holes: bool = False) -> Mask:
    """Returns the places that differ visibly; ValueError for pictures of two sizes.

    The second picture is aligned first if it has a frame (`find_frame`): else the edges of what moved count as changed.
    What lies wholly inside the area counts to it, unless it comes `with_holes`: those of a new background are what
    stands before it.
    """
    from skimage.color import rgb2lab
    from skimage.filters import threshold_otsu

    if before.shape != after.shape:
        raise ValueError(f"pictures of {before.shape} and {after.shape} cannot be compared. Fit one to the other.")
    aligned = after if frame is None else frame.align(after)
    difference = np.linalg.norm(rgb2lab(before) - rgb2lab(aligned), axis=-1)
    difference = ndimage.gaussian_filter(difference, max(LEAST_SMOOTHING, SMOOTHING * min(before.shape[:2])))
    limit = np.clip(threshold_otsu(difference), LEAST_DIFFERENCE, SURE_DIFFERENCE)
    area = difference > limit
    parts, num = ndimage.label(area if with_holes else ndimage.binary_fill_holes(area))
    sizes = np.bincount(parts.ravel(), minlength=num + 1)
    sizes[0] = 0
    return np.asarray((sizes >= SMALLEST_PART * parts.size)[parts] & (parts > 0))
