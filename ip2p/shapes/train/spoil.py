"""Spoils pictures of scenes as a failing denoiser does, so that CLIP learns that no caption fits them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ip2p.evaluation.cases import Pixels
from ip2p.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    coverage,
    draw_position,
    draw_scene,
    render,
)


def spoil(rng: random.Random, scene: Scene) -> Pixels:
    """Renders a picture that fails to show the scene in one of the usual ways."""
    return rng.choice(_WAYS if scene.objects else _WAYS_OF_EMPTY)(rng, scene)


def _extra(rng: random.Random, scene: Scene) -> Pixels:
    """Adds an object; every other time a twin of an existing one."""
    shape, colour, size = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(SIZES))
    thing = SceneObject(shape=shape, colour=colour, size=size, x=0, y=0)
    if scene.objects and rng.random() < 0.5:
        thing = rng.choice(scene.objects)
    x, y = draw_position(rng, thing.size)
    return render(replace(scene, objects=(*scene.objects, replace(thing, x=x, y=y))))


def _missing(rng: random.Random, scene: Scene) -> Pixels:
    return render(scene.without_object(rng.randrange(len(scene.objects))))


def _warped(rng: random.Random, scene: Scene) -> Pixels:
    """Bends the picture by a smooth random field of a few pixels."""
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal((2, IMAGE_SIZE, IMAGE_SIZE))
    field = ndimage.gaussian_filter(noise, (0, 4, 4))
    field *= rng.uniform(2.5, 5.0) / field.std()
    places = np.indices((IMAGE_SIZE, IMAGE_SIZE)) + field
    picture = render(scene)
    bent = [ndimage.map_coordinates(picture[..., c], places, order=1, mode="nearest") for c in range(3)]
    return np.stack(bent, -1)


def _smeared(rng: random.Random, scene: Scene) -> Pixels:
    sigma = rng.uniform(1.8, 4.0)
    return np.asarray(ndimage.gaussian_filter(render(scene), (sigma, sigma, 0)), np.uint8)


def _bitten(rng: random.Random, scene: Scene) -> Pixels:
    """Cuts a third to two thirds off one object, on one side."""
    picture = render(scene).copy()
    thing = rng.choice(scene.objects)
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * thing.radius
    rows, columns = np.indices((IMAGE_SIZE, IMAGE_SIZE))
    along = (columns - thing.x) * np.cos(angle) + (rows - thing.y) * np.sin(angle)
    near = np.hypot(columns - thing.x, rows - thing.y) < 1.2 * thing.radius
    picture[near & (along > offset)] = BACKGROUNDS[scene.background]
    return picture


def _between(rng: random.Random, scene: Scene) -> Pixels:
    """Gives one object a mixture of two shapes, or two colours at once."""
    index = rng.randrange(len(scene.objects))
    thing = scene.objects[index]
    canvas = render(scene.without_object(index)).astype(np.float32)
    alpha: npt.NDArray[np.floating] = coverage(thing.shape, thing.radius, thing.x, thing.y)
    paint: npt.NDArray[np.floating] = np.broadcast_to(np.asarray(COLOURS[thing.colour], np.float32), canvas.shape)
    if rng.random() < 0.5:
        shape = rng.choice([name for name in SHAPES if name != thing.shape])
        alpha = (alpha + coverage(shape, thing.radius, thing.x, thing.y)) / 2
    else:
        colour = rng.choice([name for name in COLOURS if name != thing.colour])
        left = np.indices(alpha.shape)[1][..., None] < thing.x
        paint = np.where(left, paint, np.asarray(COLOURS[colour], np.float32))
    return np.rint(canvas + alpha[..., None] * (paint - canvas)).astype(np.uint8)


def _halves(rng: random.Random, scene: Scene) -> Pixels:
    """Joins the upper part of the picture and the lower part of another."""
    picture, row = render(scene).copy(), rng.randint(16, 48)
    picture[row:] = render(draw_scene(rng))[row:]
    return picture


_WAYS_OF_EMPTY: tuple[Callable[[random.Random, Scene], Pixels], ...] = (_extra, _halves)
_WAYS = (_extra, _extra, _missing, _warped, _warped, _smeared, _bitten, _between, _halves)
