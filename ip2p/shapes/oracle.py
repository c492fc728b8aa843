"""Reads a picture back into a scene with plain pixel work, and says of an edit whether it was right.

Where the picture is not plainly a scene (blurred, broken, two things that touch) the answer is None, never a guess.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ip2p.evaluation.cases import EditJudgement, Pixels
from ip2p.shapes.scene import BACKGROUNDS, COLOURS, IMAGE_SIZE, SHAPES, SIZES, Rgb, Scene, SceneObject, coverage

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
"""RGB distance from the background's colour up to which a pixel belongs to the background."""
MAX_UNEVEN = 0.02
"""Largest share of the background that is none of its colour: smears and dissolved objects exceed it."""

Coverage = npt.NDArray[np.float32]


class Fit(NamedTuple):
    """The outline that explains a region best."""

    shape: str
    size: str
    overlap: float
    x: float
    y: float


def read_scene(image: Pixels) -> Scene | None:
    """The scene in a (64, 64, 3) uint8 picture, objects from left to right, or None where nothing is legible."""
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(
            f"the oracle reads ({IMAGE_SIZE}, {IMAGE_SIZE}, 3) pictures, got {image.shape}. Resize it first."
        )
    pixels = image.astype(np.float32)
    background = _read_background(pixels)
    if background is None:
        return None
    name, ground = background
    labels, num = _regions(pixels, ground)
    objects: list[SceneObject] = []
    for number in range(1, num + 1):
        region = labels == number
        if region.sum() < MIN_AREA:
            continue
        found = _read_object(pixels, region, ground)
        if found is None or len(objects) == 2:
            return None
        objects.append(found)
    if _dirt(labels, num) > MAX_DIRT or _uneven(pixels, ground, labels > 0) > MAX_UNEVEN:
        return None
    return Scene(background=name, objects=tuple(sorted(objects, key=lambda thing: thing.x)))


def _nearest(colour: npt.NDArray[np.float32], palette: dict[str, Rgb]) -> tuple[str, float]:
    distances = {name: float(np.linalg.norm(colour - np.asarray(rgb))) for name, rgb in palette.items()}
    name = min(distances, key=distances.__getitem__)
    return name, distances[name]


def _read_background(pixels: npt.NDArray[np.float32]) -> tuple[str, npt.NDArray[np.float32]] | None:
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, :2].reshape(-1, 3)])
    border = np.concatenate([border, pixels[:, -2:].reshape(-1, 3)])
    ground = np.median(border, axis=0)
    name, distance = _nearest(ground, BACKGROUNDS)
    even = np.linalg.norm(border - ground, axis=-1) < MAX_GROUND_STEP
    if distance > MAX_COLOUR_DISTANCE or even.mean() < 0.75:
        return None
    return name, ground


def _regions(pixels: npt.NDArray[np.float32], ground: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], int]:
    labels, num = ndimage.label(np.linalg.norm(pixels - ground, axis=-1) > 48)
    return labels, num


def _dirt(labels: npt.NDArray[np.int32], num: int) -> float:
    areas = ndimage.sum_labels(labels > 0, labels, range(1, num + 1)) if num else np.zeros(0)
    return float(sum(area for area in areas if area < MIN_AREA))


def _uneven(pixels: npt.NDArray[np.float32], ground: npt.NDArray[np.float32], things: npt.NDArray[np.bool_]) -> float:
    """Share of the background, away from the objects' edges, that is not in its colour."""
    away = ~ndimage.binary_dilation(things, iterations=3)
    off = np.linalg.norm(pixels - ground, axis=-1) > MAX_GROUND_STEP
    return float((off & away).sum() / max(1, away.sum()))


def _read_object(
    pixels: npt.NDArray[np.float32], region: npt.NDArray[np.bool_], ground: npt.NDArray[np.float32]
) -> SceneObject | None:
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


def _alpha(
    pixels: npt.NDArray[np.float32],
    region: npt.NDArray[np.bool_],
    ground: npt.NDArray[np.float32],
    paint: npt.NDArray[np.float32],
) -> Coverage:
    """How far each pixel near the region has gone from the background's colour to the object's."""
    step = paint - ground
    alpha = np.clip((pixels - ground) @ step / float(step @ step), 0, 1)
    near = ndimage.binary_dilation(region, iterations=2)
    return np.where(near, alpha, 0).astype(np.float32)


def _softness(alpha: Coverage) -> float:
    """Width of the edge in pixels: half-covered pixels per pixel of outline."""
    half = ((alpha > 0.25) & (alpha < 0.75)).sum()
    solid = alpha >= 0.5
    outline = (solid & ~ndimage.binary_erosion(solid)).sum()
    return float(half / max(1, outline))


@cache
def _outline(shape: str, size: str) -> tuple[Coverage, float, float]:
    """The middle (2 REACH, 2 REACH) of an image with a centred outline, and the image's centre of mass."""
    middle = IMAGE_SIZE // 2
    mask = coverage(shape, SIZES[size], middle, middle)
    cy, cx = ndimage.center_of_mass(mask)
    inner = slice(middle - REACH, middle + REACH)
    return mask[inner, inner], float(cx), float(cy)


def _fit_outline(alpha: Coverage) -> Fit | None:
    cy, cx = ndimage.center_of_mass(alpha)
    rough = [max((_fit_at(alpha, shape, size, cx, cy) for size in SIZES), key=_overlap) for shape in SHAPES]
    leaders = sorted(rough, key=_overlap, reverse=True)[:2]
    best, second = sorted((_refine(alpha, fit, cx, cy) for fit in leaders), key=_overlap, reverse=True)
    if best.overlap < MIN_OVERLAP or best.overlap - second.overlap < MIN_LEAD:
        return None
    return best


def _overlap(fit: Fit) -> float:
    return fit.overlap


def _refine(alpha: Coverage, fit: Fit, cx: float, cy: float) -> Fit:
    """Tries the outline a little to each side: the centre of mass of a rough drawing is not quite its centre."""
    steps = ((0.0, 0.0), (0.7, 0.0), (-0.7, 0.0), (0.0, 0.7), (0.0, -0.7))
    return max((_fit_at(alpha, fit.shape, fit.size, cx + dx, cy + dy) for dx, dy in steps), key=_overlap)


def _fit_at(alpha: Coverage, shape: str, size: str, cx: float, cy: float) -> Fit:
    mask, mx, my = _outline(shape, size)
    # The outline was drawn around the middle of the image, so its centre moves as far as its mass does.
    x, y = IMAGE_SIZE / 2 + cx - mx, IMAGE_SIZE / 2 + cy - my
    moved, window = move_outline(mask, x, y)
    common = float(np.minimum(moved, alpha[window]).sum())
    return Fit(shape, size, common / float(alpha.sum() + moved.sum() - common), x, y)


def move_outline(mask: Coverage, x: float, y: float) -> tuple[Coverage, tuple[slice, slice]]:
    """What an image shows of a (2 REACH, 2 REACH) mask, whose border is empty, centred at (x, y); and where it is.

    Between pixels it is bilinear, as `scipy.ndimage.shift` of order 1 on the whole image, of which this is the window.
    """
    top, left = math.floor(y) - REACH, math.floor(x) - REACH
    down, right = y - math.floor(y), x - math.floor(x)
    rows = (1 - down) * mask + down * np.roll(mask, 1, axis=0)
    moved = (1 - right) * rows + right * np.roll(rows, 1, axis=1)
    window = tuple(slice(max(0, start), max(0, start + 2 * REACH)) for start in (top, left))
    inside = tuple(slice(max(0, -start), max(0, IMAGE_SIZE - start)) for start in (top, left))
    return moved[inside].astype(np.float32), (window[0], window[1])


def _near(one: SceneObject, other: SceneObject, tolerance: float = POSITION_TOLERANCE) -> bool:
    return math.hypot(one.x - other.x, one.y - other.y) <= tolerance


def judge_edit(original: Scene, expected: Scene, edited_image: Pixels, *, edit_type: str) -> EditJudgement:
    """Compares a picture with the scene that an instruction asks for.

    *done*: the requested change is there. *kept*: everything that the instruction did not name is as in `original`,
    positions within `POSITION_TOLERANCE` pixels. An object to be added may lie anywhere.
    """
    found = read_scene(edited_image)
    if found is None:
        return EditJudgement(legible=False, done=False, kept=False)
    return judge_scenes(original, expected, found, edit_type=edit_type)


def judge_scenes(original: Scene, expected: Scene, found: Scene, *, edit_type: str) -> EditJudgement:
    """The same on scenes: what was, what was asked for and what is."""
    if edit_type == "background":
        kept = _same_objects(original.objects, found.objects)
        return EditJudgement(legible=True, done=found.background == expected.background, kept=kept)
    untouched = tuple(thing for thing in original.objects if thing in expected.objects)
    rest = list(found.objects)
    for thing in untouched:
        match = next((other for other in rest if _same(thing, other)), None)
        if match is not None:
            rest.remove(match)
    num_kept = len(found.objects) - len(rest)
    others_kept = found.background == original.background and num_kept == len(untouched)
    if edit_type == "remove":
        old = next(thing for thing in original.objects if thing not in expected.objects)
        gone = not any(_near(old, thing) or thing.attributes == old.attributes for thing in rest)
        strange = [thing for thing in rest if not _near(old, thing)]
        return EditJudgement(legible=True, done=gone, kept=others_kept and not strange)
    new = next(thing for thing in expected.objects if thing not in original.objects)
    if edit_type == "add":
        done = any(thing.attributes == new.attributes for thing in rest)
        return EditJudgement(legible=True, done=done, kept=others_kept and len(rest) <= 1)
    return _judge_change(original, new, rest, others_kept, edit_type)


def _judge_change(
    original: Scene, new: SceneObject, rest: list[SceneObject], others_kept: bool, edit_type: str
) -> EditJudgement:
    """Colour, shape, size and replace: one object stays in its place and changes what was named."""
    here = next((thing for thing in rest if _near(new, thing)), None)
    if here is None:
        return EditJudgement(legible=True, done=False, kept=False)
    others_kept = others_kept and len(rest) == 1
    if edit_type == "replace":
        return EditJudgement(legible=True, done=here.attributes == new.attributes, kept=others_kept)
    done = getattr(here, edit_type) == getattr(new, edit_type)
    unnamed = [name for name in ("shape", "colour", "size") if name != edit_type]
    return EditJudgement(
        legible=True, done=done, kept=others_kept and all(getattr(here, n) == getattr(new, n) for n in unnamed)
    )


def _same(one: SceneObject, other: SceneObject) -> bool:
    return one.attributes == other.attributes and _near(one, other)


def _same_objects(one: tuple[SceneObject, ...], other: tuple[SceneObject, ...]) -> bool:
    rest = list(other)
    for thing in one:
        match = next((candidate for candidate in rest if _same(thing, candidate)), None)
        if match is None:
            return False
        rest.remove(match)
    return not rest
