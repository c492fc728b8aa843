"""How scenes and edits are put into words, and how words are read back.

A caption names every attribute of the scene, so that caption and picture can be compared attribute by attribute.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from ip2p.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    draw_position,
    draw_scene,
)

EDIT_TYPES = ("colour", "shape", "size", "background", "add", "remove", "replace")

Attributes = tuple[str, str, str]
"""(size, colour, shape) of an object, as a caption names them."""


@dataclass(frozen=True, slots=True)
class Described:
    """What a caption says: the background and the objects, without positions, in the caption's order."""

    background: str
    objects: tuple[Attributes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneEdit:
    """A scene, an instruction and the exact scene that the instruction asks for."""

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
    """Drops the positions."""
    return Described(scene.background, tuple(thing.attributes for thing in scene.objects))


def caption(described: Described, phrasing: int = 0) -> str:
    """Words the description with one of the phrasings for its number of objects (counted modulo)."""
    templates = CAPTION_TEMPLATES[len(described.objects)]
    names = [" ".join(attributes) for attributes in described.objects]
    return templates[phrasing % len(templates)].format(*names, bg=described.background)


def draw_caption(rng: random.Random, scene: Scene) -> str:
    """Words the scene with a phrasing drawn by chance."""
    return caption(describe(scene), rng.randrange(12))


_THING = rf"({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_GROUND = rf"({'|'.join(BACKGROUNDS)}) background"


def parse_caption(text: str) -> Described | None:
    """Reads a caption back, or None where it is not one that the grammar can make."""
    ground = re.findall(_GROUND, text)
    if len(ground) != 1:
        return None
    things = tuple((size, colour, shape) for size, colour, shape in re.findall(_THING, text))
    if len(things) > 2 or _ambiguous(things):
        return None
    described = Described(ground[0], things)
    wordings = {caption(described, index) for index in range(len(CAPTION_TEMPLATES[len(things)]))}
    return described if text in wordings else None


def _ambiguous(things: tuple[Attributes, ...]) -> bool:
    return len(things) == 2 and (things[0][1] == things[1][1] or things[0][2] == things[1][2])


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


def _other(rng: random.Random, names: dict[str, object] | tuple[str, ...], taken: set[str]) -> str:
    return rng.choice([name for name in names if name not in taken])


def _edit_colour(rng: random.Random, scene: Scene, index: int) -> Scene:
    taken = {thing.colour for thing in scene.objects}
    return scene.with_object(index, replace(scene.objects[index], colour=_other(rng, tuple(COLOURS), taken)))


def _edit_shape(rng: random.Random, scene: Scene, index: int) -> Scene:
    taken = {thing.shape for thing in scene.objects}
    return scene.with_object(index, replace(scene.objects[index], shape=_other(rng, SHAPES, taken)))


def _edit_size(rng: random.Random, scene: Scene, index: int) -> Scene:
    thing = scene.objects[index]
    return scene.with_object(index, replace(thing, size=_other(rng, tuple(SIZES), {thing.size})))


def _edit_background(rng: random.Random, scene: Scene, index: int) -> Scene:
    return replace(scene, background=_other(rng, tuple(BACKGROUNDS), {scene.background}))


def _edit_add(rng: random.Random, scene: Scene, index: int) -> Scene:
    new = _draw_thing(rng, scene)
    return replace(scene, objects=(*scene.objects, new))


def _edit_remove(rng: random.Random, scene: Scene, index: int) -> Scene:
    return scene.without_object(index)


def _edit_replace(rng: random.Random, scene: Scene, index: int) -> Scene:
    old = scene.objects[index]
    new = _draw_thing(rng, scene)
    return scene.with_object(index, replace(new, x=old.x, y=old.y))


def _draw_thing(rng: random.Random, scene: Scene) -> SceneObject:
    size = rng.choice(list(SIZES))
    x, y = draw_position(rng, size)
    colour = _other(rng, tuple(COLOURS), {thing.colour for thing in scene.objects})
    shape = _other(rng, SHAPES, {thing.shape for thing in scene.objects})
    return SceneObject(shape=shape, colour=colour, size=size, x=x, y=y)


_EDITS: dict[str, Callable[[random.Random, Scene, int], Scene]] = {
    "colour": _edit_colour,
    "shape": _edit_shape,
    "size": _edit_size,
    "background": _edit_background,
    "add": _edit_add,
    "remove": _edit_remove,
    "replace": _edit_replace,
}


def possible_edit_types(num_objects: int) -> tuple[str, ...]:
    """Edit types that a scene of so many objects allows."""
    return tuple(
        kind
        for kind in EDIT_TYPES
        if kind == "background" or (kind == "add" and num_objects < 2) or (kind != "add" and num_objects > 0)
    )


def _inside(scene: Scene) -> bool:
    fits = all(
        thing.radius + 1 <= min(thing.x, thing.y) and max(thing.x, thing.y) <= IMAGE_SIZE - 1 - thing.radius
        for thing in scene.objects
    )
    return fits and (len(scene.objects) < 2 or scene.objects[0].clears(scene.objects[1]))


def draw_edit(rng: random.Random, *, edit_type: str | None = None) -> SceneEdit:
    """Draws a scene and an edit of it; without `edit_type` each of the seven types is equally likely."""
    kind = edit_type or rng.choice(EDIT_TYPES)
    while True:
        edit = draw_edit_of(rng, draw_scene(rng), kind)
        if edit.edit_type == kind:
            return edit


def draw_edit_of(rng: random.Random, original: Scene, edit_type: str) -> SceneEdit:
    """Draws an edit of a scene; where the scene allows no such type, or has no room for it, another type."""
    kinds = possible_edit_types(len(original.objects))
    kind = edit_type if edit_type in kinds else rng.choice(kinds)
    for _ in range(200):
        index = rng.randrange(max(1, len(original.objects)))
        edited = _EDITS[kind](rng, original, index)
        if edited.is_visible and _inside(edited):
            words = draw_instruction(rng, kind, original, edited, index)
            return SceneEdit(original=original, edited=edited, edit_type=kind, edit_prompt=words)
    return draw_edit_of(rng, original, rng.choice(kinds))


def draw_moved(rng: random.Random, scene: Scene) -> Scene:
    """The same description with every object at a new place."""
    while True:
        places = [draw_position(rng, thing.size) for thing in scene.objects]
        moved = tuple(replace(thing, x=x, y=y) for thing, (x, y) in zip(scene.objects, places, strict=True))
        if _inside(replace(scene, objects=moved)):
            return replace(scene, objects=moved)


def draw_instruction(rng: random.Random, kind: str, original: Scene, edited: Scene, index: int) -> str:
    """Words the step from one scene to the other; `index` is the object that is edited."""
    return rng.choice(instructions(kind, describe(original), describe(edited), index))


def instructions(kind: str, before: Described, after: Described, index: int) -> list[str]:
    """Every wording of an edit; `index` is the object that is edited, in both descriptions where both have it."""
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
    """The one edit that leads from a description to another."""

    kind: str
    index: int
    """The object that is edited; for an added one its place in the edited description."""


def find_step(before: Described, after: Described) -> Step | None:
    """The single edit between two descriptions, or None where there is none or more than one."""
    if before.background != after.background:
        return Step("background", 0) if before.objects == after.objects else None
    num_before, num_after = len(before.objects), len(after.objects)
    if num_after == num_before + 1:
        return Step("add", num_before) if after.objects[:num_before] == before.objects else None
    if num_after == num_before - 1:
        return next(
            (
                Step("remove", k)
                for k in range(num_before)
                if before.objects[:k] + before.objects[k + 1 :] == after.objects
            ),
            None,
        )
    changed = [k for k in range(num_before) if num_after == num_before and before.objects[k] != after.objects[k]]
    if len(changed) != 1:
        return None
    names = ("size", "colour", "shape")
    pairs = zip(names, before.objects[changed[0]], after.objects[changed[0]], strict=True)
    differing = [name for name, old, new in pairs if old != new]
    return Step(differing[0] if len(differing) == 1 else "replace", changed[0])


def is_consistent(original_prompt: str, edit_prompt: str, edited_prompt: str) -> bool:
    """Says whether both captions are the grammar's and the instruction words the step between them."""
    before, after = parse_caption(original_prompt), parse_caption(edited_prompt)
    if before is None or after is None:
        return False
    step = find_step(before, after)
    if step is None:
        return False
    kinds = (step.kind, "replace") if step.kind in ("colour", "shape", "size") else (step.kind,)
    return any(edit_prompt in instructions(kind, before, after, step.index) for kind in kinds)
