"""Scenes: what chance may draw, and what the renderer puts where."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ip2p.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    coverage,
    draw_scene,
    render,
)


def scenes(num: int) -> list[Scene]:
    rng = random.Random(7)
    return [draw_scene(rng) for _ in range(num)]


def test_the_domain_is_as_rich_as_it_must_be() -> None:
    assert len(SHAPES) >= 6 and len(COLOURS) >= 8 and len(SIZES) == 2 and len(BACKGROUNDS) >= 6


def test_scenes_hold_none_one_or_two_objects_that_never_share_a_shape_or_colour() -> None:
    drawn = scenes(400)
    assert {len(scene.objects) for scene in drawn} == {0, 1, 2}
    for scene in drawn:
        assert len({thing.shape for thing in scene.objects}) == len(scene.objects)
        assert len({thing.colour for thing in scene.objects}) == len(scene.objects)


def test_objects_lie_inside_the_picture_and_apart() -> None:
    for scene in scenes(400):
        for thing in scene.objects:
            assert thing.radius <= thing.x <= IMAGE_SIZE - thing.radius
            assert thing.radius <= thing.y <= IMAGE_SIZE - thing.radius
        if len(scene.objects) == 2:
            assert scene.objects[0].clears(scene.objects[1])


def test_the_same_seed_draws_the_same_pictures() -> None:
    assert all(np.array_equal(render(one), render(other)) for one, other in zip(scenes(5), scenes(5), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_an_outline_is_centred_antialiased_and_moves_with_its_position(shape: str) -> None:
    mask = coverage(shape, 12.0, 30.0, 34.0)
    assert mask.shape == (IMAGE_SIZE, IMAGE_SIZE) and mask.min() == 0 and mask.max() == 1
    assert ((mask > 0.05) & (mask < 0.95)).any()
    assert np.allclose(np.roll(mask, (2, 3), (0, 1)), coverage(shape, 12.0, 33.0, 36.0), atol=0.02)


def test_a_picture_shows_the_palette_exactly_away_from_edges() -> None:
    thing = SceneObject(shape="square", colour="blue", size="large", x=32, y=32)
    picture = render(Scene(background="pink", objects=(thing,)))
    assert tuple(picture[32, 32]) == COLOURS["blue"] and tuple(picture[1, 1]) == BACKGROUNDS["pink"]
