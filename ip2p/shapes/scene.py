"""Defines what a scene is, draws scenes at random and renders them to pixels.

A scene is a background with up to two objects on it. Two objects differ in shape and in colour, so that "the circle"
or "the red one" is never ambiguous, and they never touch.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

IMAGE_SIZE = 64
SUPERSAMPLING = 4
OBJECT_GAP = 4.0
"""Least distance in pixels between the outlines of two objects; half of it is kept to the border."""

Rgb = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS: dict[str, Rgb] = {
    "red": (220, 35, 40),
    "orange": (248, 138, 24),
    "yellow": (250, 225, 45),
    "green": (30, 145, 60),
    "blue": (35, 80, 220),
    "purple": (140, 45, 175),
    "white": (252, 252, 252),
    "black": (16, 16, 20),
}
BACKGROUNDS: dict[str, Rgb] = {
    "gray": (140, 140, 145),
    "pink": (245, 178, 205),
    "cyan": (125, 212, 225),
    "beige": (226, 205, 165),
    "brown": (112, 74, 48),
    "lime": (172, 218, 110),
}
MIN_CONTRAST = 120.0
"""Least RGB distance of an object from its background (black to white is 441); less is lost in latents this small."""
SIZES = {"small": 9.0, "large": 15.0}
"""Circumradius in pixels of each size."""
ATTRIBUTES: dict[str, tuple[str, ...]] = {"size": tuple(SIZES), "colour": tuple(COLOURS), "shape": SHAPES}
"""Values of an object's attributes, in the order in which a caption names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One object: its attributes and its centre in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float

    @property
    def radius(self) -> float:
        """Returns the circumradius in pixels."""
        return SIZES[self.size]

    @property
    def attributes(self) -> tuple[str, str, str]:
        """Returns (size, colour, shape): what a caption says about the object."""
        return self.size, self.colour, self.shape

    def clears(self, other: SceneObject) -> bool:
        """Returns True if the two outlines are at least `OBJECT_GAP` apart."""
        return math.hypot(self.x - other.x, self.y - other.y) >= self.radius + other.radius + OBJECT_GAP


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A background and up to two objects, in the order in which a caption names them."""

    background: str
    objects: tuple[SceneObject, ...] = ()

    @property
    def is_visible(self) -> bool:
        """Returns True if every object stands out against the background."""
        ground = BACKGROUNDS[self.background]
        return all(math.dist(COLOURS[thing.colour], ground) >= MIN_CONTRAST for thing in self.objects)

    @property
    def has_room(self) -> bool:
        """Returns True if every object lies inside the image and apart from the other."""
        inside = all(
            thing.radius + 1 <= min(thing.x, thing.y) and max(thing.x, thing.y) <= IMAGE_SIZE - 1 - thing.radius
            for thing in self.objects
        )
        return inside and (len(self.objects) < 2 or self.objects[0].clears(self.objects[1]))

    def with_object(self, index: int, new: SceneObject) -> Scene:
        """Returns the scene with one object replaced."""
        return replace(self, objects=(*self.objects[:index], new, *self.objects[index + 1 :]))

    def without_object(self, index: int) -> Scene:
        """Returns the scene with one object removed."""
        return replace(self, objects=self.objects[:index] + self.objects[index + 1 :])


def draw_scene(rng: random.Random, *, num_objects: int | None = None) -> Scene:
    """Draws a scene; by default it has no, one or two objects with odds 1 : 9 : 10."""
    if num_objects is None:
        num_objects = rng.choices((0, 1, 2), weights=(1, 9, 10))[0]
    shapes = rng.sample(SHAPES, num_objects)
    colours = rng.sample(list(COLOURS), num_objects)
    objects = tuple(
        SceneObject(shape=shape, colour=colour, size=rng.choice(list(SIZES)), x=0, y=0)
        for shape, colour in zip(shapes, colours, strict=True)
    )
    scene = draw_moved(rng, Scene(background="", objects=objects))
    scenes = [replace(scene, background=name) for name in BACKGROUNDS]
    return rng.choice([scene for scene in scenes if scene.is_visible])


def draw_moved(rng: random.Random, scene: Scene) -> Scene:
    """Returns the same scene with every object at a new place."""
    while True:
        places = [draw_position(rng, thing.size) for thing in scene.objects]
        objects = [replace(thing, x=x, y=y) for thing, (x, y) in zip(scene.objects, places, strict=True)]
        moved = replace(scene, objects=tuple(objects))
        if moved.has_room:
            return moved


def draw_position(rng: random.Random, size: str) -> tuple[float, float]:
    """Draws the centre of an object that lies entirely inside the image."""
    margin = SIZES[size] + OBJECT_GAP / 2
    return rng.uniform(margin, IMAGE_SIZE - margin), rng.uniform(margin, IMAGE_SIZE - margin)


def render(scene: Scene) -> npt.NDArray[np.uint8]:
    """Renders the scene, antialiased, as (64, 64, 3) uint8."""
    canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    for thing in scene.objects:
        alpha = coverage(thing.shape, thing.radius, thing.x, thing.y)[..., None]
        canvas += alpha * (np.asarray(COLOURS[thing.colour], np.float32) - canvas)
    return np.rint(canvas).astype(np.uint8)


def coverage(shape: str, radius: float, x: float, y: float) -> npt.NDArray[np.float32]:
    """Returns the share of each pixel that the shape covers: (64, 64) in [0, 1]."""
    scale = SUPERSAMPLING
    mask = Image.new("L", (IMAGE_SIZE * scale, IMAGE_SIZE * scale))
    brush = ImageDraw.Draw(mask)
    # ImageDraw counts from pixel centres, the scene from pixel edges: they are half a fine pixel apart.
    cx, cy, r = x * scale - 0.5, y * scale - 0.5, radius * scale
    if shape in ("circle", "ring"):
        brush.ellipse(_box(cx, cy, 0.92 * r), fill=255)
        if shape == "ring":
            brush.ellipse(_box(cx, cy, 0.50 * r), fill=0)
    else:
        brush.polygon([(cx + r * px, cy + r * py) for px, py in _OUTLINES[shape]], fill=255)
    return np.asarray(mask.reduce(scale), np.float32) / np.float32(255)


def _box(cx: float, cy: float, r: float) -> tuple[float, float, float, float]:
    return cx - r, cy - r, cx + r, cy + r


def _star() -> list[tuple[float, float]]:
    turns = [math.pi * (k / 5 - 0.5) for k in range(10)]
    radii = [1.08 if k % 2 == 0 else 0.46 for k in range(10)]
    return [(r * math.cos(t), r * math.sin(t)) for r, t in zip(radii, turns, strict=True)]


def _cross(width: float = 0.30, length: float = 0.95) -> list[tuple[float, float]]:
    corner = [(width, length), (width, width), (length, width)]
    quarter_turns = ((1, 1), (1, -1), (-1, -1), (-1, 1))
    points = []
    for index, (sx, sy) in enumerate(quarter_turns):
        walk = corner if index % 2 == 0 else corner[::-1]
        points += [(sx * px, sy * py) for px, py in walk]
    return points


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0.0, -0.95), (1.0, 0.75), (-1.0, 0.75)],
    "star": _star(),
    "cross": _cross(),
}
