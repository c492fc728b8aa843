"""The shapes domain as the evaluation sees it: held-out edits by the true renderer, and the oracle's word on each."""

from __future__ import annotations

import random
from dataclasses import replace

from ip2p.evaluation.cases import EditCase, EditJudgement, Pixels
from ip2p.records import EditTriplet
from ip2p.shapes.language import (
    EDIT_TYPES,
    Attributes,
    Described,
    Step,
    caption,
    describe,
    draw_edit,
    find_step,
    is_consistent,
    parse_caption,
)
from ip2p.shapes.oracle import judge_edit, read_scene
from ip2p.shapes.scene import IMAGE_SIZE, Scene, SceneObject, render

WRONG = EditJudgement(legible=True, done=False, kept=False)
ILLEGIBLE = EditJudgement(legible=False, done=False, kept=False)


class ShapesDomain:
    """Draws edits of scenes and judges pictures by reading them back."""

    def edit_types(self) -> tuple[str, ...]:
        """The seven types."""
        return EDIT_TYPES

    def draw_cases(self, num: int, seed: int) -> list[EditCase]:
        """Draws held-out edits, the types in turn; positions are continuous, so no scene was ever seen."""
        rng = random.Random(f"held-out edits {seed}")
        return [_draw_case(rng, EDIT_TYPES[index % len(EDIT_TYPES)]) for index in range(num)]

    def judge_case(self, case: EditCase, edited_image: Pixels) -> EditJudgement:
        """Judges an edited picture against the true scene."""
        original, expected = case.payload
        return judge_edit(original, expected, edited_image, edit_type=case.edit_type)

    def judge_pair(self, triplet: EditTriplet, original_image: Pixels, edited_image: Pixels) -> EditJudgement:
        """Judges a rendered pair: the original must show its caption, the edited picture must be its right edit."""
        before, after = parse_caption(triplet.original_prompt), parse_caption(triplet.edited_prompt)
        if before is None or after is None:
            return WRONG
        step = find_step(before, after)
        if step is None or not is_consistent(triplet.original_prompt, triplet.edit_prompt, triplet.edited_prompt):
            return WRONG
        read = read_scene(original_image)
        if read is None:
            return ILLEGIBLE
        original = _in_order_of(before, read)
        if original is None:
            return WRONG
        return judge_edit(original, _expected(original, after, step), edited_image, edit_type=step.kind)


def _draw_case(rng: random.Random, edit_type: str) -> EditCase:
    edit = draw_edit(rng, edit_type=edit_type)
    phrasing = rng.randrange(12)
    before, after = render(edit.original), render(edit.edited)
    free = edit_type == "add"  # it may go anywhere, so no one picture is the right answer
    return EditCase(
        original_image=before,
        target_image=None if free else after,
        mask=None if free else (before != after).any(-1),
        edit_prompt=edit.edit_prompt,
        original_prompt=caption(describe(edit.original), phrasing),
        edited_prompt=caption(describe(edit.edited), phrasing),
        edit_type=edit.edit_type,
        payload=(edit.original, edit.edited),
    )


def _in_order_of(described: Described, read: Scene) -> Scene | None:
    """The scene that was read with its objects in the caption's order, or None where it shows something else."""
    by_attributes = {thing.attributes: thing for thing in read.objects}
    if read.background != described.background or set(by_attributes) != set(described.objects):
        return None
    return replace(read, objects=tuple(by_attributes[attributes] for attributes in described.objects))


def _expected(original: Scene, after: Described, step: Step) -> Scene:
    """The scene that the edited caption asks for, with what stays at its place."""
    if step.kind == "background":
        return replace(original, background=after.background)
    if step.kind == "remove":
        return original.without_object(step.index)
    if step.kind == "add":
        return replace(
            original, objects=(*original.objects, _thing(after.objects[step.index], IMAGE_SIZE / 2, IMAGE_SIZE / 2))
        )
    old = original.objects[step.index]
    return original.with_object(step.index, _thing(after.objects[step.index], old.x, old.y))


def _thing(attributes: Attributes, x: float, y: float) -> SceneObject:
    size, colour, shape = attributes
    return SceneObject(shape=shape, colour=colour, size=size, x=x, y=y)
