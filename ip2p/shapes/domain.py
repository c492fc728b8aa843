"""Offers the shapes domain to the evaluation: held-out edits by the true renderer, judged by the oracle."""

from __future__ import annotations

import random
from dataclasses import replace

from ip2p.evaluation.cases import EditCase, EditJudgement, Pixels
from ip2p.evaluation.trials import Trial
from ip2p.records import EditTriplet, hash_to_unit
from ip2p.shapes.language import (
    EDIT_TYPES,
    Described,
    SceneEdit,
    Step,
    caption,
    describe,
    draw_edit,
    draw_edit_of,
    find_step,
    instructions,
    parse_caption,
    read_edit,
)
from ip2p.shapes.oracle import judge_edit, read_scene
from ip2p.shapes.scene import IMAGE_SIZE, Scene, SceneObject, render


class ShapesDomain:
    """Draws edits of scenes and judges pictures by reading them back."""

    def edit_types(self) -> tuple[str, ...]:
        """Returns the seven types."""
        return EDIT_TYPES

    def draw_cases(self, num: int, seed: int) -> list[EditCase]:
        """Draws held-out edits, the types in turn; positions are continuous, so no scene was seen in training."""
        rng = random.Random(f"held-out edits {seed}")
        return [_draw_case(rng, EDIT_TYPES[index % len(EDIT_TYPES)]) for index in range(num)]

    def word_edit(self, original_prompt: str, edited_prompt: str, seed: int) -> tuple[str, str] | None:
        """Returns the type and one wording of the single edit between two captions; None if there is no such edit."""
        before, after = parse_caption(original_prompt), parse_caption(edited_prompt)
        step = find_step(before, after) if before and after else None
        if before is None or after is None or step is None:
            return None
        worded = instructions(step.kind, before, after, step.index)
        drawn = hash_to_unit("wording", seed, original_prompt, edited_prompt)
        return step.kind, worded[int(drawn * len(worded))]

    def draw_trials(self, num: int, seed: int) -> list[Trial]:
        """Draws true pairs, the types in turn, with the right instruction and one for another edit of the same type."""
        rng = random.Random(f"trials {seed}")
        return [_draw_trial(rng, EDIT_TYPES[index % len(EDIT_TYPES)]) for index in range(num)]

    def judge_case(self, case: EditCase, edited_image: Pixels) -> EditJudgement:
        """Judges an edited picture against the true scene."""
        original, expected = case.payload
        return judge_edit(original, expected, edited_image, edit_type=case.edit_type)

    def judge_pair(self, triplet: EditTriplet, original_image: Pixels, edited_image: Pixels) -> EditJudgement:
        """Judges a rendered pair: the original must show its caption, the edited picture must be its right edit."""
        edit = read_edit(triplet.original_prompt, triplet.edit_prompt, triplet.edited_prompt)
        if edit is None:
            return EditJudgement(legible=True, done=False, kept=False)
        before, after, step = edit
        scene = read_scene(original_image)
        original = _in_order_of(before, scene) if scene else None
        if original is None:
            return EditJudgement(legible=scene is not None, done=False, kept=False)
        return judge_edit(original, _expected(original, after, step), edited_image, edit_type=step.kind)


def _draw_case(rng: random.Random, edit_type: str) -> EditCase:
    edit = draw_edit(rng, edit_type=edit_type)
    phrasing = rng.randrange(12)
    before, after = render(edit.original), render(edit.edited)
    free = edit_type == "add"  # the object may go anywhere, so there is no single right answer
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


def _draw_trial(rng: random.Random, edit_type: str) -> Trial:
    """Draws scenes until one allows two edits of the type that lead to different scenes."""
    while True:
        edit = draw_edit(rng, edit_type=edit_type)
        other = draw_edit_of(rng, edit.original, edit_type)
        if other.edit_type == edit_type and describe(other.edited) != describe(edit.edited):
            break
    phrasing, before = rng.randrange(12), render(edit.original)

    def triplet(made: SceneEdit) -> EditTriplet:
        return EditTriplet(
            original_prompt=caption(describe(made.original), phrasing),
            edit_prompt=made.edit_prompt,
            edited_prompt=caption(describe(made.edited), phrasing),
            edit_type=edit_type,
        )

    return Trial(original_image=before, edited_image=render(edit.edited), right=triplet(edit), wrong=triplet(other))


def _in_order_of(described: Described, scene: Scene) -> Scene | None:
    """Returns the scene with its objects in the caption's order, or None if it does not show the caption."""
    by_attributes = {thing.attributes: thing for thing in scene.objects}
    if scene.background != described.background or set(by_attributes) != set(described.objects):
        return None
    return replace(scene, objects=tuple(by_attributes[attributes] for attributes in described.objects))


def _expected(original: Scene, after: Described, step: Step) -> Scene:
    """Returns the scene that the edited caption asks for; what stays keeps its place."""
    if step.kind == "background":
        return replace(original, background=after.background)
    if step.kind == "remove":
        return original.without_object(step.index)
    size, colour, shape = after.objects[step.index]
    if step.kind == "add":
        new = SceneObject(shape=shape, colour=colour, size=size, x=IMAGE_SIZE / 2, y=IMAGE_SIZE / 2)
        return replace(original, objects=(*original.objects, new))
    return original.with_object(
        step.index, replace(original.objects[step.index], shape=shape, colour=colour, size=size)
    )
