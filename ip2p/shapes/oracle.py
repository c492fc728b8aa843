"""Reads a picture back into a scene with plain pixel work, and judges whether an edit is right.

A picture that is not clearly a scene (blurred, broken, two objects that touch) is not guessed at: the answer is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ip2p.evaluation.cases import EditJudgement, Pixels
from ip2p.shapes.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    Rgb,
    Scene,
    SceneObject,
    coverage,
)

MAX_COLOUR_DISTANCE = 60.0
"""Euclidean RGB distance from a palette colour beyond which a region has no name."""
MIN_AREA = 24.0
"""Pixels below which a region is dirt."""
MAX_DIRT = 12.0
"""Pixels of dirt beyond which a picture is broken."""
MIN_OVERLAP = 0.70
"""Least soft overlap (intersection over union) with the best-fitting outline."""
MIN_LEAD = 0.015
"""Least lead of the best outline over that of any other shape."""
MAX_SOFTNESS = 1.7
"""Half-covered pixels per pixel of outline, i.e. the width of the edge: up to 1.1 on a clean render, 2 under a blur."""
POSITION_TOLERANCE = 4.0
"""Pixels by which an object may move and still count as kept."""

REACH = 20
"""Half the side in pixels of the square in which an outline of any size is drawn, with an empty border."""
MAX_GROUND_STEP = 26.0
"""RGB distance up to which a pixel still has the background's colour."""
MAX_UNEVEN = 0.02
"""Largest share of the background in another colour; smears and dissolved objects exceed it."""

Floats = npt.NDArray[np.float32]


class Fit(NamedTuple):
    """The outline that explains a region best."""

    shape: str
    size: str
    overlap: float
    x: float
    y: float


def read_scene(image: Pixels) -> Scene | None:
    """Reads a (64, 64, 3) uint8 picture, objects from left to right; returns None if it is not legible."""
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(
            f"the oracle reads ({IMAGE_SIZE}, {IMAGE_SIZE}, 3) pictures, got {image.shape}. Resize it first."
        )
    pixels = image.astype(np.float32)
    background = _read_background(pixels)
    if background is None:
        return None
    name, ground = background
    labels, num = ndimage.label(np.linalg.norm(pixels - ground, axis=-1) > 48)
    areas = ndimage.sum_labels(labels > 0, labels, range(1, num + 1)) if num else np.zeros(0)
    objects: list[SceneObject] = []
    for number in np.flatnonzero(areas >= MIN_AREA) + 1:
        thing = _read_object(pixels, labels == number, ground)
        if thing is None or len(objects) == 2:
            return None
        objects.append(thing)
    if areas[areas < MIN_AREA].sum() > MAX_DIRT or _uneven(pixels, ground, labels > 0) > MAX_UNEVEN:
        return None
    return Scene(background=name, objects=tuple(sorted(objects, key=attrgetter("x"))))


def _nearest(colour: Floats, palette: dict[str, Rgb]) -> tuple[str, float]:
    distances = {name: float(np.linalg.norm(colour - np.asarray(rgb))) for name, rgb in palette.items()}
    name = min(distances, key=distances.__getitem__)
    return name, distances[name]


def _read_background(pixels: Floats) -> tuple[str, Floats] | None:
    """Reads the background's name and colour off the border."""
    sides = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    border = np.concatenate([side.reshape(-1, 3) for side in sides])
    ground = np.median(border, axis=0)
    name, distance = _nearest(ground, BACKGROUNDS)
    even = np.linalg.norm(border - ground, axis=-1) < MAX_GROUND_STEP
    if distance > MAX_COLOUR_DISTANCE or even.mean() < 0.75:
        return None
    return name, ground


def _uneven(pixels: Floats, ground: Floats, things: npt.NDArray[np.bool_]) -> float:
    """Returns the share of the background, away from the objects' edges, that has another colour."""
    away = ~ndimage.binary_dilation(things, iterations=3)
    off = np.linalg.norm(pixels - ground, axis=-1) > MAX_GROUND_STEP
    return float((off & away).sum() / max(1, away.sum()))


def _read_object(pixels: Floats, region: npt.NDArray[np.bool_], ground: Floats) -> SceneObject | None:
    contrast = np.linalg.norm(pixels - ground, axis=-1)
    core = region & (contrast >= np.quantile(contrast[region], 0.5))
    paint = np.median(pixels[core], axis=0)
    colour, distance = _nearest(paint, COLOURS)
    if distance > MAX_COLOUR_DISTANCE:
        return None
    alpha = _alpha(pixels, region, ground, paint)
    if _softness(alpha) > MAX_SOFTNESS:
        return None
    fit = _fit_outline(alpha)
    if fit is None:
        return None
    return SceneObject(shape=fit.shape, colour=colour, size=fit.size, x=float(fit.x), y=float(fit.y))


def _alpha(pixels: Floats, region: npt.NDArray[np.bool_], ground: Floats, paint: Floats) -> Floats:
    """Returns how far each pixel near the region has gone from the background's colour to the object's."""
    step = paint - ground
    alpha = np.clip((pixels - ground) @ step / float(step @ step), 0, 1)
    near = ndimage.binary_dilation(region, iterations=2)
    return np.where(near, alpha, 0).astype(np.float32)


def _softness(alpha: Floats) -> float:
    """Returns the width of the edge in pixels: half-covered pixels per pixel of outline."""
    half = ((alpha > 0.25) & (alpha < 0.75)).sum()
    solid = alpha >= 0.5
    outline = (solid & ~ndimage.binary_erosion(solid)).sum()
    return float(half / max(1, outline))


@cache
def _outline(shape: str, size: str) -> tuple[Floats, float, float]:
    """Returns the middle (2 REACH, 2 REACH) of an image with a centred outline, and the image's centre of mass."""
    middle = IMAGE_SIZE // 2
    mask = coverage(shape, SIZES[size], middle, middle)
    cy, cx = ndimage.center_of_mass(mask)
    inner = slice(middle - REACH, middle + REACH)
    return mask[inner, inner], float(cx), float(cy)


def _fit_outline(alpha: Floats) -> Fit | None:
    """Returns the outline that overlaps the region best, or None if it does not fit or another shape fits as well."""
    overlap = attrgetter("overlap")
    cy, cx = ndimage.center_of_mass(alpha)
    rough = [max((_fit_at(alpha, shape, size, cx, cy) for size in SIZES), key=overlap) for shape in SHAPES]
    leaders = sorted(rough, key=overlap, reverse=True)[:2]
    # The centre of mass of a rough drawing is not quite its centre, so each is tried a little to every side too.
    steps = ((0.0, 0.0), (0.7, 0.0), (-0.7, 0.0), (0.0, 0.7), (0.0, -0.7))
    refined = [
        max((_fit_at(alpha, fit.shape, fit.size, cx + dx, cy + dy) for dx, dy in steps), key=overlap) for fit in leaders
    ]
    best, second = sorted(refined, key=overlap, reverse=True)
    if best.overlap < MIN_OVERLAP or best.overlap - second.overlap < MIN_LEAD:
        return None
    return best


def _fit_at(alpha: Floats, shape: str, size: str, cx: float, cy: float) -> Fit:
    mask, mx, my = _outline(shape, size)
    # The outline was drawn around the middle of the image, so its centre moves as far as its mass does.
    x, y = IMAGE_SIZE / 2 + cx - mx, IMAGE_SIZE / 2 + cy - my
    moved, window = move_outline(mask, x, y)
    common = float(np.minimum(moved, alpha[window]).sum())
    return Fit(shape, size, common / float(alpha.sum() + moved.sum() - common), x, y)


def move_outline(mask: Floats, x: float, y: float) -> tuple[Floats, tuple[slice, slice]]:
    """Centres a (2 REACH, 2 REACH) mask with an empty border at (x, y); returns what an image shows of it, and where.

    Between pixels it is bilinear, like `scipy.ndimage.shift` of order 1 on the whole image, of which this is a window.
    """
    top, left = math.floor(y) - REACH, math.floor(x) - REACH
    down, right = y - math.floor(y), x - math.floor(x)
    rows = (1 - down) * mask + down * np.roll(mask, 1, axis=0)
    moved = (1 - right) * rows + right * np.roll(rows, 1, axis=1)
    window = tuple(slice(max(0, start), max(0, start + 2 * REACH)) for start in (top, left))
    inside = tuple(slice(max(0, -start), max(0, IMAGE_SIZE - start)) for start in (top, left))
    return moved[inside].astype(np.float32), (window[0], window[1])


def judge_edit(original: Scene, expected: Scene, edited_image: Pixels, *, edit_type: str) -> EditJudgement:
    """Compares a picture with the scene that an instruction asks for.

    *done*: the requested change is there. *kept*: everything that the instruction did not name is as in `original`,
    positions within `POSITION_TOLERANCE` pixels. An object to be added may lie anywhere.
    """
    edited = read_scene(edited_image)
    if edited is None:
        return EditJudgement(legible=False, done=False, kept=False)
    untouched = [thing for thing in original.objects if thing in expected.objects]
    rest = _unmatched(edited.objects, untouched)
    all_matched = len(edited.objects) - len(rest) == len(untouched)
    if edit_type == "background":
        return EditJudgement(legible=True, done=edited.background == expected.background, kept=all_matched and not rest)
    kept = all_matched and edited.background == original.background
    if edit_type == "remove":
        old = next(thing for thing in original.objects if thing not in expected.objects)
        gone = not any(_near(old, thing) or thing.attributes == old.attributes for thing in rest)
        return EditJudgement(legible=True, done=gone, kept=kept and all(_near(old, thing) for thing in rest))
    new = next(thing for thing in expected.objects if thing not in original.objects)
    if edit_type == "add":
        done = any(thing.attributes == new.attributes for thing in rest)
        return EditJudgement(legible=True, done=done, kept=kept and len(rest) <= 1)
    here = next((thing for thing in rest if _near(new, thing)), None)
    if here is None:
        return EditJudgement(legible=True, done=False, kept=False)
    named = tuple(ATTRIBUTES) if edit_type == "replace" else (edit_type,)
    right = {name for name in ATTRIBUTES if getattr(here, name) == getattr(new, name)}
    kept = kept and len(rest) == 1 and right.issuperset(name for name in ATTRIBUTES if name not in named)
    return EditJudgement(legible=True, done=right.issuperset(named), kept=kept)


def _near(one: SceneObject, other: SceneObject) -> bool:
    return math.hypot(one.x - other.x, one.y - other.y) <= POSITION_TOLERANCE


def _unmatched(objects: Iterable[SceneObject], others: Iterable[SceneObject]) -> list[SceneObject]:
    """Returns the objects that are left when each of `others` has taken one that equals it, if there is any."""
    rest = list(objects)
    for other in others:
        match = next((thing for thing in rest if thing.attributes == other.attributes and _near(other, thing)), None)
        if match is not None:
            rest.remove(match)
    return rest
