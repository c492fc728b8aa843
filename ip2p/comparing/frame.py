"""Measures how what did not change was moved, grown or turned from one picture to the other.

A shift, a scale and a rotation are fitted to all pixels at once, from coarse to fine, by least squares on what is left
of the pictures without their slow changes of brightness. A pixel that still differs counts less the more it differs
(Geman and McClure's weights), so that the change itself does not count, whatever its place and up to half of the
picture. Phase correlation, block by block or of the whole picture, needs blocks without a change: with 40 % of the
middle changed, it lost half of the pairs that this fit measures to a tenth of a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Pixels = npt.NDArray[np.uint8]
"""(height, width, 3)."""
Floats = npt.NDArray[np.float64]

LEVELS = (32, 64, 128, 256)
"""Shorter sides in pixels at which the fit is made; a smaller picture ends at its own."""
SMALLEST_SIDE = 24
"""Pixels below which nothing is measured."""
FINE, COARSE = 0.7, 2.0
"""Standard deviations in pixels of the blurs between which a level is looked at."""
ROUNDS = 12
"""Most steps per level."""
ENOUGH = 0.003
"""Pixels at the border below which a step is the last."""
LEAST_SLOPE, LEAST_NOISE = 0.004, 0.004
"""Change of brightness per pixel, on a scale of 0 to 1, from which a place has texture; smallest scale of what is left
over."""
LEAST_TEXTURE = 20
"""Textured pixels without which there is nothing to fit."""
LEAST_MATCH = 0.8
"""Correlation of what counts below which the pictures do not match. Unrelated photographs reach 0.45, and the same one
in other light, colour or contrast 0.87 or more."""
CELLS, LEAST_CELLS = 8, 34.0
"""Cells per side, and how many of all 64 must decide, weighed by how much they do. Fewer are a thing or two on a plain
ground, which may have moved by themselves: scenes of the shapes domain reach 31, photographs of which 40 % changed have
40 or more."""
MOST_CHANGE = 0.3
"""Scale beyond 1, shift or rotation in radians from which a fit has lost its way."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the frame of the first picture lies in the second: what does not change is moved like this."""

    x: float
    """Shift of the middle to the right, as a share of the shorter side."""
    y: float
    """Shift of the middle downwards, as a share of the shorter side."""
    scale: float
    """Above 1 if what the picture shows has grown."""
    rotation: float
    """Degrees, clockwise."""

    @property
    def shift(self) -> float:
        """Returns the distance that the middle moved, as a share of the shorter side."""
        return math.hypot(self.x, self.y)

    def drift(self, width: int, height: int) -> float:
        """Returns the distance that the corner moved that moved most, as a share of the shorter side."""
        short = min(width, height)
        corners = [(x * width / 2 / short, y * height / 2 / short) for x in (-1, 1) for y in (-1, 1)]
        return max(math.dist(corner, self.move(*corner)) for corner in corners)

    def move(self, x: float, y: float) -> tuple[float, float]:
        """Returns where a place of the first picture lies in the second, from the middle, in shorter sides."""
        cosine, sine = (self.scale * turn(math.radians(self.rotation)) for turn in (math.cos, math.sin))
        return cosine * x - sine * y + self.x, sine * x + cosine * y + self.y

    def align(self, after: Pixels) -> Pixels:
        """Returns the second picture moved back onto the first; repeats its border where it ends."""
        short, (height, width) = min(after.shape[:2]), after.shape[:2]
        rows, columns = np.mgrid[:height, :width].astype(float)
        places = self.move((columns - (width - 1) / 2) / short, (rows - (height - 1) / 2) / short)
        at = [places[1] * short + (height - 1) / 2, places[0] * short + (width - 1) / 2]
        sides = [ndimage.map_coordinates(after[..., k].astype(float), at, order=1, mode="nearest") for k in range(3)]
        return np.stack(sides, axis=-1).round().clip(0, 255).astype(np.uint8)


def find_frame(before: Pixels, after: Pixels) -> Frame | None:
    """Fits the frame to a pair of pictures.

    None if they differ in size, are flat or do not match, or if few places decide.
    """
    if before.shape != after.shape or min(before.shape[:2]) < SMALLEST_SIDE:
        return None
    motion, fit, short = np.zeros(4), None, min(before.shape[:2])
    for side in [side for side in LEVELS if side < short] + ([short] if short <= LEVELS[-1] else []):
        fit = _fit(_level(before, side), _level(after, side), motion)
        motion = motion if fit is None else fit.motion
    if fit is None or np.abs(motion).max() > MOST_CHANGE or not fit.is_reliable:
        return None
    a, b, x, y = motion.tolist()
    return Frame(x, y, math.hypot(1 + a, b), math.degrees(math.atan2(b, 1 + a)))


def _level(picture: Pixels, side: int) -> Floats:
    """Returns the brightness at a size, between the two blurs."""
    height, width = picture.shape[:2]
    size = [max(1, round(length * side / min(height, width))) for length in (width, height)]
    grey = Image.fromarray(picture).convert("L").resize((size[0], size[1]), Image.Resampling.BOX)
    fine = ndimage.gaussian_filter(np.asarray(grey, float) / 255, FINE)
    return np.asarray(fine - ndimage.gaussian_filter(fine, COARSE))


@dataclass(frozen=True, slots=True)
class _Fit:
    """A fit at one level: its motion, and what it was fitted to."""

    motion: Floats
    """(4,): scale times cosine less 1, scale times sine, shift to the right, shift downwards."""
    one: Floats
    other: Floats
    """The second picture, moved back."""
    weight: Floats
    slopes: Floats
    """(2, height, width): to the right and downwards."""
    places: Floats
    """(2, height, width), from the middle, in shorter sides."""

    @property
    def is_reliable(self) -> bool:
        """Returns whether what counts matches and lies in enough places."""
        counts = self.weight > 0.25
        if counts.sum() < LEAST_TEXTURE or min(side[counts].std() for side in (self.one, self.other)) == 0:
            return False
        match = np.corrcoef(self.one[counts], self.other[counts])[0, 1]
        return bool(match >= LEAST_MATCH and _count_cells(self.weight * (self.slopes**2).sum(0)) >= LEAST_CELLS)


def _count_cells(deciding: Floats) -> float:
    """Returns how many cells decide: all if all do alike, one if one does."""
    rows, columns = (np.arange(CELLS) * length // CELLS for length in deciding.shape)
    cells = np.add.reduceat(np.add.reduceat(np.sqrt(deciding), rows, 0), columns, 1)
    return float(cells.sum() ** 2 / (cells**2).sum())


def _fit(one: Floats, other: Floats, motion: Floats) -> _Fit | None:
    """Refines a motion at one level; None if too little has texture."""
    height, width = one.shape
    short, middle = min(height, width), np.array([(width - 1) / 2, (height - 1) / 2])[:, None, None]
    places = (np.mgrid[:height, :width][::-1] - middle) / short
    spline, own_slopes = ndimage.spline_filter(other, 3), np.gradient(one)[::-1]
    fit = None
    for _ in range(ROUNDS):
        a, b, x, y = motion
        target = np.stack([(1 + a) * places[0] - b * places[1] + x, b * places[0] + (1 + a) * places[1] + y])
        at = target * short + middle
        is_inside = (at >= 1).all(0) & (at[0] <= width - 2) & (at[1] <= height - 2)
        moved = ndimage.map_coordinates(spline, at[::-1], order=3, prefilter=False, mode="nearest")
        slopes = (np.stack(np.gradient(moved)[::-1]) + own_slopes) / 2
        left = one - moved
        textured = is_inside & (np.hypot(*slopes) > LEAST_SLOPE)
        if textured.sum() < LEAST_TEXTURE:
            return None
        noise = max(LEAST_NOISE, 1.4826 * float(np.median(np.abs(left[textured]))))
        weight = is_inside / (1 + (left / noise) ** 2) ** 2
        fit = _Fit(motion, one, moved, weight, slopes, places)
        step = _step(fit, left, short)
        motion = motion + step
        if np.abs(step).max() * short < ENOUGH:
            break
    return fit and replace(fit, motion=motion)


def _step(fit: _Fit, left: Floats, short: int) -> Floats:
    """Solves the weighted normal equations for the next step of the motion."""
    (right, down), (x, y) = fit.slopes * short, fit.places
    effects = np.stack([right * x + down * y, down * x - right * y, right, down]).reshape(4, -1)
    weighted = effects * fit.weight.ravel()
    equations = weighted @ effects.T
    equations += np.eye(4) * 1e-9 * np.trace(equations)
    return np.asarray(np.linalg.solve(equations, weighted @ left.ravel()))
