"""The frame of a pair is measured on pairs that were moved by known amounts; the changed area on known edits."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy import ndimage
from skimage.transform import SimilarityTransform, warp
from sklearn.datasets import load_sample_images

from ip2p.comparing import Frame, changed_area, composite, find_frame
from ip2p.shapes.domain import ShapesDomain

Pixels = npt.NDArray[np.uint8]
NOISE, QUALITY = 4.0, 90
"""Standard deviation of the noise, and quality of the JPEG, of both pictures."""


@dataclass(frozen=True)
class Motion:
    """What happened to the second picture: pixels, factor, degrees."""

    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0
    rotation: float = 0.0

    def about_the_middle(self, side: int) -> SimilarityTransform:
        middle = (side - 1) / 2
        turned = SimilarityTransform(scale=self.scale, rotation=math.radians(self.rotation))
        return (
            SimilarityTransform(translation=(-middle, -middle))
            + turned
            + SimilarityTransform(translation=(middle + self.dx, middle + self.dy))
        )


@lru_cache
def photograph(number: int, side: int) -> tuple[npt.NDArray[np.float64], SimilarityTransform]:
    """A photograph, blurred for a size, and where the middle of it lies in it."""
    picture = load_sample_images().images[number] / 255
    height, width = picture.shape[:2]
    factor = 0.8 * min(height, width) / side
    place = (
        SimilarityTransform(translation=(-(side - 1) / 2,) * 2)
        + SimilarityTransform(scale=factor)
        + SimilarityTransform(translation=((width - 1) / 2, (height - 1) / 2))
    )
    return ndimage.gaussian_filter(picture, (max(0.0, factor / 2 - 0.2),) * 2 + (0,)), place


def moved_pair(number: int, side: int, motion: Motion, *, edited: float, seed: int = 0) -> tuple[Pixels, Pixels]:
    """A photograph and itself moved, with a share of the middle replaced by the other one, noise and JPEG."""
    picture, place = photograph(number, side)
    before = warp(picture, place, output_shape=(side, side), order=3)
    after = warp(picture, motion.about_the_middle(side).inverse + place, output_shape=(side, side), order=3)
    if edited:
        edge = round(side * math.sqrt(edited))
        start = (side - edge) // 2
        other, other_place = photograph(1 - number, edge)
        after[start : start + edge, start : start + edge] = warp(other, other_place, output_shape=(edge, edge))
    rng = np.random.default_rng(seed)
    return stored(before * 255, rng), stored(after * 255, rng)


def stored(values: npt.NDArray[np.float64], rng: np.random.Generator) -> Pixels:
    noisy = (values + rng.normal(0, NOISE, values.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(file))


def draw_motions(num: int, side: int) -> list[Motion]:
    """Sub-pixel shifts of up to 2.3 % of the side, growth of 1 to 5 %, turns of 0.5 to 3 degrees, and all of them."""
    rng, motions = np.random.default_rng(side), list[Motion]()
    for number in range(num):
        dx, dy = rng.uniform(-0.023, 0.023, 2) * side if number % 4 in (0, 3) else (0.0, 0.0)
        scale = 1 + rng.uniform(0.01, 0.05) if number % 4 in (1, 3) else 1.0
        rotation = rng.uniform(0.5, 3) * rng.choice([-1, 1]) if number % 4 in (2, 3) else 0.0
        motions.append(Motion(dx, dy, scale, rotation))
    return motions


def largest_error(frame: Frame, motion: Motion, side: int) -> float:
    """The largest distance in pixels between where a corner is and where the frame says that it is."""
    middle = (side - 1) / 2
    corners = np.array([(x, y) for x in (0, side - 1) for y in (0, side - 1)])
    said = np.array([frame.move(*(corner - middle) / side) for corner in corners]) * side + middle
    return float(np.linalg.norm(said - motion.about_the_middle(side)(corners), axis=1).max())


@pytest.mark.parametrize(("side", "median", "most"), [(64, 0.15, 0.5), (128, 0.06, 0.2), (256, 0.04, 0.12)])
def test_a_frame_is_measured_to_a_fraction_of_a_pixel_with_two_fifths_of_the_picture_changed(
    side: int, median: float, most: float
) -> None:
    motions = draw_motions(16, side)
    pairs = [moved_pair(number // 4 % 2, side, each, edited=0.4, seed=number) for number, each in enumerate(motions)]
    frames = [find_frame(*pair) for pair in pairs]
    errors = [largest_error(found, motion, side) for found, motion in zip(frames, motions, strict=True) if found]

    assert len(errors) == len(motions)
    assert np.median(errors) < median and np.quantile(errors, 0.95) < most


def test_growth_shift_and_turn_are_told_apart() -> None:
    grown = find_frame(*moved_pair(0, 128, Motion(scale=1.03), edited=0.2))
    turned = find_frame(*moved_pair(0, 128, Motion(rotation=-2), edited=0.2))
    shifted = find_frame(*moved_pair(0, 128, Motion(dx=2.5, dy=-1), edited=0.2))
    assert grown is not None and turned is not None and shifted is not None
    assert (grown.scale, grown.shift, grown.rotation) == pytest.approx((1.03, 0, 0), abs=0.02)
    assert (turned.scale, turned.rotation, turned.shift) == pytest.approx((1, -2, 0), abs=0.03)
    assert (shifted.x * 128, shifted.y * 128, shifted.scale) == pytest.approx((2.5, -1, 1), abs=0.05)
    assert grown.drift(128, 128) == pytest.approx(0.03 * math.sqrt(0.5), abs=0.002)


def test_a_picture_in_another_light_is_measured_too() -> None:
    before, after = moved_pair(0, 128, Motion(dx=2), edited=0.1)
    for changed in (0.6 * after, 255 * (after / 255) ** 1.8, after * np.array([1.2, 1, 0.6]), after / 2 + 60):
        found = find_frame(before, changed.clip(0, 255).astype(np.uint8))
        assert found is not None and largest_error(found, Motion(dx=2), 128) < 0.6


def test_what_cannot_be_matched_is_not_measured() -> None:
    before, after = moved_pair(0, 64, Motion(), edited=0)
    other, _ = moved_pair(1, 64, Motion(), edited=0)
    flat = np.full_like(before, 128)
    noise = stored(np.full(before.shape, 128.0), np.random.default_rng(0))
    thing = flat.copy()
    thing[20:30, 10:24] = (200, 30, 30)
    for one, two in ((before, other), (flat, flat), (flat, noise), (noise, noise[::-1]), (before, 255 - after)):
        assert find_frame(one, np.ascontiguousarray(two)) is None
    assert find_frame(thing, np.roll(thing, 5, axis=1)) is None  # a thing that moved, on a flat ground
    assert find_frame(before, after[:-1]) is None and find_frame(before[:20], after[:20]) is None


def test_a_true_edit_of_the_shapes_has_no_made_up_frame() -> None:
    cases = [case for case in ShapesDomain().draw_cases(140, 3) if case.target_image is not None]
    frames = [find_frame(case.original_image, case.target_image) for case in cases if case.target_image is not None]
    assert [frame.drift(64, 64) for frame in frames if frame is not None and frame.drift(64, 64) > 0.01] == []


def test_aligning_undoes_the_motion() -> None:
    before, after = moved_pair(0, 128, Motion(dx=3, scale=1.03), edited=0)
    found = find_frame(before, after)
    assert found is not None
    inside = np.s_[8:-8, 8:-8]
    moved, back = (np.abs(before - side.astype(float))[inside].mean() for side in (after, found.align(after)))
    assert back < 0.5 * moved and back < 6  # what is left is noise and JPEG


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4])
def test_the_changed_area_is_where_the_edit_was(share: float) -> None:
    before, after = moved_pair(0, 128, Motion(), edited=share)
    edge = round(128 * math.sqrt(share))
    start, truth = (128 - edge) // 2, np.zeros((128, 128), bool)
    truth[start : start + edge, start : start + edge] = True
    found = changed_area(before, after)
    assert (found & truth).sum() / (found | truth).sum() > 0.7


def test_noise_and_jpeg_change_nothing_and_everything_is_an_area_too() -> None:
    before, after = moved_pair(0, 128, Motion(), edited=0)
    assert not changed_area(before, after).any()
    assert changed_area(before, 255 - before).mean() > 0.9
    with pytest.raises(ValueError, match="cannot be compared"):
        changed_area(before, after[:-1])


@pytest.mark.parametrize("motion", [Motion(), Motion(dx=3, scale=1.03)])
def test_a_composite_is_the_first_picture_but_for_the_change(motion: Motion) -> None:
    before, after = moved_pair(0, 128, motion, edited=0.2)
    edge = round(128 * math.sqrt(0.2))
    inside, far = np.zeros((128, 128), bool), np.zeros((128, 128), bool)
    far[8:-8, 8:-8] = True  # at the border, what came from beyond it is a change
    start = (128 - edge) // 2
    inside[start + 4 : start + edge - 4, start + 4 : start + edge - 4] = True
    far[start - 16 : start + edge + 16, start - 16 : start + edge + 16] = False
    joined = composite(before, after)
    frame = find_frame(before, after)
    aligned = after if frame is None else frame.align(after)
    assert (joined[far] == before[far]).all(-1).mean() > 0.98 and (before[far] != after[far]).any(-1).mean() > 0.9
    assert np.abs(joined[inside] - aligned[inside].astype(float)).mean() < 1


def test_a_composite_of_a_drifted_edit_is_nearer_to_the_true_one() -> None:
    chance = np.random.default_rng(0)
    for case in ShapesDomain().draw_cases(70, 3):
        if case.target_image is None or case.mask is None:
            continue
        drifted = np.where(case.mask[..., None], case.target_image, case.original_image)
        noise = ndimage.gaussian_filter(chance.normal(0, 12, drifted.shape), (1, 1, 0))
        drifted = (drifted + noise).clip(0, 255).astype(np.uint8)
        errors = [
            np.abs(side - case.target_image.astype(float)).mean()
            for side in (drifted, composite(case.original_image, drifted))
        ]
        assert errors[1] < 0.8 * errors[0] or case.mask.mean() > 0.5
    with pytest.raises(ValueError, match="cannot be compared"):
        composite(drifted, drifted[:-1])
