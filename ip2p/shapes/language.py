"""Puts scenes and edits into words, and reads the words back.

A caption names every attribute of the scene, so that caption and picture can be compared attribute by attribute.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ip2p.shapes.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    draw_position,
    draw_scene,
)

EDIT_TYPES = ("colour", "shape", "size", "background", "add", "remove", "replace")

Attributes = tuple[str, str, str]
"""(size, colour, shape) of an object, in a caption's order."""


@dataclass(frozen=True, slots=True)
class Described:
    """The content of a caption: the background and the objects, in the caption's order and without positions."""

    background: str
    objects: tuple[Attributes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneEdit:
    """A scene, an instruction and the scene that the instruction asks for."""

    original: Scene
    edited: Scene
    edit_type: str
    edit_prompt: str


_EMPTY = ("an empty {bg} background", "nothing on a {bg} background", "a plain {bg} background")
_ONE = (
    "a {0} on a {bg} background",
    "a picture of a {0} on a {bg} background",
    "a {bg} background with a {0}",
)
_TWO = (
    "a {0} and a {1} on a {bg} background",
    "a picture of a {0} and a {1} on a {bg} background",
    "a {bg} background with a {0} and a {1}",
    "a {0} next to a {1} on a {bg} background",
)
CAPTION_TEMPLATES = (_EMPTY, _ONE, _TWO)


def describe(scene: Scene) -> Described:
    """Returns the scene without the positions."""
    return Described(scene.background, tuple(thing.attributes for thing in scene.objects))


def caption(described: Described, phrasing: int = 0) -> str:
    """Words the description with one of the phrasings for its number of objects, counted modulo."""
    templates = CAPTION_TEMPLATES[len(described.objects)]
    names = [" ".join(attributes) for attributes in described.objects]
    return templates[phrasing % len(templates)].format(*names, bg=described.background)


def draw_caption(rng: random.Random, scene: Scene) -> str:
    """Words the scene with a random phrasing."""
    return caption(describe(scene), rng.randrange(12))


_THING = " ".join(f"({'|'.join(names)})" for names in ATTRIBUTES.values())
_GROUND = rf"({'|'.join(BACKGROUNDS)}) background"


def parse_caption(text: str) -> Described | None:
    """Reads a caption back, or returns None if the grammar cannot make it."""
    ground = re.findall(_GROUND, text)
    if len(ground) != 1:
        return None
    things = tuple((size, colour, shape) for size, colour, shape in re.findall(_THING, text))
    if len(things) > 2:
        return None
    if len(things) == 2 and (things[0][1] == things[1][1] or things[0][2] == things[1][2]):
        return None  # an instruction could not tell the two apart
    described = Described(ground[0], things)
    wordings = {caption(described, index) for index in range(len(CAPTION_TEMPLATES[len(things)]))}
    return described if text in wordings else None


_REFERENCES = ("the {shape}", "the {colour} {shape}", "the {size} {colour} {shape}")
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "colour": (
        "make {ref} {colour}",
        "turn {ref} {colour}",
        "paint {ref} {colour}",
        "change the color of {ref} to {colour}",
    ),
    "shape": ("turn {ref} into a {shape}", "make {ref} a {shape}", "change {ref} to a {shape}"),
    "size": ("make {ref} {size}", "make {ref} {comparative}", "{size_verb} {ref}"),
    "background": (
        "make the background {bg}",
        "change the background to {bg}",
        "turn the background {bg}",
        "put it on a {bg} background",
    ),
    "add": ("add a {thing}", "put a {thing} in the picture", "place a {thing} on the background"),
    "remove": ("remove {ref}", "take away {ref}", "delete {ref}", "erase {ref}"),
    "replace": ("replace {ref} with a {thing}", "swap {ref} for a {thing}", "exchange {ref} for a {thing}"),
}
_COMPARATIVE = {"small": "smaller", "large": "bigger"}
_SIZE_VERB = {"small": "shrink", "large": "enlarge"}


def _other(rng: random.Random, names: Iterable[str], taken: set[str]) -> str:
    return rng.choice([name for name in names if name not in taken])


def _draw_thing(rng: random.Random, scene: Scene) -> SceneObject:
    size = rng.choice(list(SIZES))
    x, y = draw_position(rng, size)
    colour = _other(rng, COLOURS, {thing.colour for thing in scene.objects})
    shape = _other(rng, SHAPES, {thing.shape for thing in scene.objects})
    return SceneObject(shape=shape, colour=colour, size=size, x=x, y=y)


def _draw_edited(rng: random.Random, scene: Scene, kind: str, index: int) -> Scene:
    """Draws the scene after an edit of the object at `index`; it may lack contrast or room."""
    if kind == "background":
        return replace(scene, background=_other(rng, BACKGROUNDS, {scene.background}))
    if kind == "add":
        return replace(scene, objects=(*scene.objects, _draw_thing(rng, scene)))
    if kind == "remove":
        return scene.without_object(index)
    old = scene.objects[index]
    if kind == "replace":
        new = replace(_draw_thing(rng, scene), x=old.x, y=old.y)
    elif kind == "size":
        new = replace(old, size=_other(rng, SIZES, {old.size}))
    elif kind == "colour":
        new = replace(old, colour=_other(rng, COLOURS, {thing.colour for thing in scene.objects}))
    else:
        new = replace(old, shape=_other(rng, SHAPES, {thing.shape for thing in scene.objects}))
    return scene.with_object(index, new)


def _is_possible(kind: str, num_objects: int) -> bool:
    """Returns True if a scene with this many objects allows the type of edit."""
    return kind == "background" or (num_objects < 2 if kind == "add" else num_objects > 0)


def draw_edit(rng: random.Random, *, edit_type: str | None = None) -> SceneEdit:
    """Draws a scene and an edit of it; by default each of the seven types is equally likely."""
    kind = edit_type or rng.choice(EDIT_TYPES)
    while True:
        edit = draw_edit_of(rng, draw_scene(rng), kind)
        if edit.edit_type == kind:
            return edit


def draw_edit_of(rng: random.Random, original: Scene, edit_type: str) -> SceneEdit:
    """Draws an edit of a scene, of another type if the scene does not allow this one or has no room for it."""
    kinds = [kind for kind in EDIT_TYPES if _is_possible(kind, len(original.objects))]
    kind = edit_type if edit_type in kinds else rng.choice(kinds)
    for _ in range(200):
        index = rng.randrange(max(1, len(original.objects)))
        edited = _draw_edited(rng, original, kind, index)
        if edited.is_visible and edited.has_room:
            words = rng.choice(instructions(kind, describe(original), describe(edited), index))
            return SceneEdit(original=original, edited=edited, edit_type=kind, edit_prompt=words)
    return draw_edit_of(rng, original, rng.choice(kinds))


def instructions(kind: str, before: Described, after: Described, index: int) -> list[str]:
    """Returns every wording of an edit; `index` is the edited object, in both descriptions if both have it."""
    slots = {"bg": after.background, "thing": ""}
    references = [""]
    if kind not in ("background", "add"):
        size, colour, shape = before.objects[index]
        references = [reference.format(size=size, colour=colour, shape=shape) for reference in _REFERENCES]
    if kind not in ("background", "remove"):
        size, colour, shape = new = after.objects[-1 if kind == "add" else index]
        slots |= {"size": size, "colour": colour, "shape": shape, "thing": " ".join(new)}
        slots |= {"comparative": _COMPARATIVE[size], "size_verb": _SIZE_VERB[size]}
    worded = [template.format(ref=reference, **slots) for template in INSTRUCTIONS[kind] for reference in references]
    return list(dict.fromkeys(worded))


@dataclass(frozen=True, slots=True)
class Step:
    """The one edit that leads from one description to another."""

    kind: str
    index: int
    """The edited object; for an added one its place in the edited description."""


def find_step(before: Described, after: Described) -> Step | None:
    """Returns the single edit between two descriptions, or None if there is no edit or more than one."""
    if before.background != after.background:
        return Step("background", 0) if before.objects == after.objects else None
    num_before, num_after = len(before.objects), len(after.objects)
    if num_after == num_before + 1:
        return Step("add", num_before) if after.objects[:num_before] == before.objects else None
    if num_after == num_before - 1:
        removals = (before.objects[:k] + before.objects[k + 1 :] for k in range(num_before))
        return next((Step("remove", k) for k, left in enumerate(removals) if left == after.objects), None)
    if num_after != num_before:
        return None
    changed = [k for k in range(num_before) if before.objects[k] != after.objects[k]]
    if len(changed) != 1:
        return None
    values = zip(ATTRIBUTES, before.objects[changed[0]], after.objects[changed[0]], strict=True)
    differing = [name for name, old, new in values if old != new]
    return Step(differing[0] if len(differing) == 1 else "replace", changed[0])


def read_edit(original_prompt: str, edit_prompt: str, edited_prompt: str) -> tuple[Described, Described, Step] | None:
    """Reads a triplet back, or returns None unless both captions are in the grammar and the instruction fits them."""
    before, after = parse_caption(original_prompt), parse_caption(edited_prompt)
    step = find_step(before, after) if before and after else None
    if before is None or after is None or step is None:
        return None
    kinds = (step.kind, "replace") if step.kind in ATTRIBUTES else (step.kind,)
    fits = any(edit_prompt in instructions(kind, before, after, step.index) for kind in kinds)
    return (before, after, step) if fits else None
