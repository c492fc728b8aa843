"""The oracle: right on what is drawn, silent on what cannot be read, and exact about what an edit changed."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from ip2p.evaluation.cases import Pixels
from ip2p.shapes.domain import ShapesDomain
from ip2p.shapes.language import EDIT_TYPES, describe
from ip2p.shapes.oracle import REACH, judge_edit, move_outline, read_scene
from ip2p.shapes.scene import SIZES, Scene, SceneObject, coverage, draw_moved, draw_scene, render
from ip2p.shapes.train.measure import oracle_accuracy, says

CIRCLE = SceneObject(shape="circle", colour="red", size="large", x=20, y=22)
STAR = SceneObject(shape="star", colour="blue", size="small", x=48, y=46)
SCENE = Scene(background="beige", objects=(CIRCLE, STAR))


def blurred(picture: Pixels, sigma: float) -> Pixels:
    smooth: Pixels = ndimage.gaussian_filter(picture.astype(np.float32), (sigma, sigma, 0)).astype(np.uint8)
    return smooth


@pytest.mark.slow
def test_the_oracle_reads_a_thousand_fresh_renders() -> None:
    assert oracle_accuracy(1000, seed=1)["attributes"] >= 0.995


def test_positions_are_read_to_a_fraction_of_a_pixel() -> None:
    rng = random.Random(8)
    for _ in range(40):
        scene = draw_scene(rng)
        found = read_scene(render(scene))
        assert found is not None
        for one, other in zip(found.objects, sorted(scene.objects, key=lambda thing: thing.x), strict=True):
            assert np.hypot(one.x - other.x, one.y - other.y) < 0.5


@pytest.mark.parametrize("sigma", [1.5, 2.0, 3.0, 6.0])
def test_nothing_is_guessed_of_a_blurred_picture(sigma: float) -> None:
    rng = random.Random(9)
    for _ in range(20):
        scene = draw_scene(rng, num_objects=rng.choice((1, 2)))
        found = read_scene(blurred(render(scene), sigma))
        assert found is None or says(found, describe(scene))


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_legible_in_noise(seed: int) -> None:
    assert read_scene(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)) is None


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (255, 0, 255)])
def test_a_flat_picture_in_no_background_colour_is_not_legible(colour: tuple[int, int, int]) -> None:
    assert read_scene(np.full((64, 64, 3), colour, np.uint8)) is None


def test_half_a_picture_and_three_objects_are_not_legible() -> None:
    broken = render(SCENE)
    broken[32:] = render(Scene(background="lime"))[32:]
    assert read_scene(broken) is None
    third = SceneObject(shape="cross", colour="green", size="small", x=50, y=14)
    assert read_scene(render(replace(SCENE, objects=(*SCENE.objects, third)))) is None


def test_another_size_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match=r"reads \(64, 64, 3\) pictures, got \(32, 32, 3\)"):
        read_scene(np.zeros((32, 32, 3), np.uint8))


@pytest.mark.parametrize("edit_type", EDIT_TYPES)
def test_the_true_edit_succeeds_and_copying_the_input_keeps_all_but_does_nothing(edit_type: str) -> None:
    domain = ShapesDomain()
    for case in (case for case in domain.draw_cases(70, 3) if case.edit_type == edit_type):
        original, expected = case.payload
        assert domain.judge_case(case, render(expected)).success
        copied = domain.judge_case(case, render(original))
        assert not copied.done and copied.kept
        assert domain.judge_pair(case.triplet, render(original), render(expected)).success


def test_the_right_change_elsewhere_is_done_but_not_kept() -> None:
    expected = SCENE.with_object(0, replace(CIRCLE, colour="green"))
    moved_star = expected.with_object(1, replace(STAR, x=30, y=50))
    verdict = judge_edit(SCENE, expected, render(moved_star), edit_type="colour")
    assert verdict.done and not verdict.kept and not verdict.success


def test_a_change_of_something_unnamed_is_not_kept() -> None:
    expected = SCENE.with_object(0, replace(CIRCLE, colour="green"))
    shrunk = SCENE.with_object(0, replace(CIRCLE, colour="green", size="small"))
    assert not judge_edit(SCENE, expected, render(shrunk), edit_type="colour").kept
    assert not judge_edit(SCENE, expected, render(replace(expected, background="lime")), edit_type="colour").kept


def test_an_added_object_may_lie_anywhere_but_must_be_the_one_asked_for() -> None:
    alone = Scene(background="beige", objects=(CIRCLE,))
    elsewhere = SCENE.with_object(1, replace(STAR, x=14, y=52))
    assert judge_edit(alone, SCENE, render(elsewhere), edit_type="add").success
    other = SCENE.with_object(1, replace(STAR, colour="white"))
    assert not judge_edit(alone, SCENE, render(other), edit_type="add").done


def test_a_pair_whose_original_does_not_show_its_caption_is_not_right() -> None:
    domain, rng = ShapesDomain(), random.Random(11)
    case = next(case for case in domain.draw_cases(20, 4) if case.edit_type == "background" and case.payload[0].objects)
    original, expected = case.payload
    other = replace(original.objects[0], size="small" if original.objects[0].size == "large" else "large")
    wrong, wrong_edit = original.with_object(0, other), expected.with_object(0, other)
    assert not domain.judge_pair(case.triplet, render(wrong), render(wrong_edit)).success
    assert not domain.judge_pair(case.triplet, render(original), render(draw_moved(rng, expected))).kept


def test_held_out_edits_are_balanced_and_a_pure_function_of_the_seed() -> None:
    domain = ShapesDomain()
    one, other = domain.draw_cases(70, 5), domain.draw_cases(70, 5)
    assert [case.edit_prompt for case in one] == [case.edit_prompt for case in other]
    assert all(sum(case.edit_type == kind for case in one) == 10 for kind in EDIT_TYPES)
    assert [case.edit_prompt for case in domain.draw_cases(70, 6)] != [case.edit_prompt for case in one]


@pytest.mark.parametrize(("x", "y"), [(32.0, 32.0), (20.3, 41.9), (3.25, 60.5), (64.0, -2.75), (-30.0, 12.0)])
def test_an_outline_is_moved_as_the_whole_image_would_be(x: float, y: float) -> None:
    whole = coverage("star", SIZES["large"], 32, 32)
    expected = ndimage.shift(whole, (y - 32, x - 32), order=1)
    piece, window = move_outline(whole[32 - REACH : 32 + REACH, 32 - REACH : 32 + REACH], x, y)
    found = np.zeros_like(expected)
    found[window] = piece
    np.testing.assert_allclose(found, expected, atol=1e-5)
