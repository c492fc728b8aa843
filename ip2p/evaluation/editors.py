"""The editors that are compared: trained ones, and baselines that show how much their figures are worth.

The copy preserves everything and changes nothing; the untrained model cannot see the picture; SDEdit (Meng et al.,
2021) needs no training, gets the edited caption, and preserves the less the more it changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ip2p.config import EvaluationConfig, TrainingConfig, fingerprint
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.images import fitted_size
from ip2p.sources.content import Source, fingerprint_files, loaded_files, note
from ip2p.training.fingerprints import model_fingerprint, models_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Guidance by text and picture, or the strength of SDEdit."""

    guidance_scale: float
    image_guidance_scale: float
    strength: float | None = None
    """Share of the noise that SDEdit puts on the picture; None for every other editor."""

    @property
    def name(self) -> str:
        """Returns `t7.5-i1.5` or, for SDEdit, `s0.5`."""
        if self.strength is not None:
            return f"s{self.strength:g}"
        return f"t{self.guidance_scale:g}-i{self.image_guidance_scale:g}"


EditFunction = Callable[[Sequence[Pixels], Sequence[EditCase], Sequence[int], Setting], list[Pixels]]
"""Takes images, their cases, seeds and a setting; returns the edited images, in the size in which they were edited."""


@dataclass(frozen=True, slots=True)
class EditorSource:
    """An editor that is not loaded yet."""

    identity: str
    """Hash of what decides its edits: weights and sampling."""
    load: Callable[[], EditFunction]


def copy_source() -> EditorSource:
    """Returns the editor that leaves the input as it is."""
    return EditorSource("copy", lambda: lambda images, cases, seeds, setting: list(images))


def editor_source(model: str, knobs: EvaluationConfig, notes: Path) -> EditorSource:
    """Returns a trained editor from a folder, known by its files, or a hub id, whose commit is noted in `notes`."""

    def load() -> EditFunction:
        from ip2p.editing import load_editor

        editor = load_editor(model, knobs.device, dtype=knobs.dtype or "float32")
        return partial(_edit_by_instruction, editor, knobs)

    folder = Path(model).expanduser()
    is_local = folder.is_dir()
    identity = fingerprint_files(loaded_files(folder)) if is_local else fingerprint(model, None)
    later = [] if is_local else note(notes, [Source("models", model)])
    precision = [knobs.dtype] if knobs.dtype else []
    return EditorSource(fingerprint("editor", identity, _sampling(knobs), *precision, *later), load)


def untrained_source(base: TrainingConfig, knobs: EvaluationConfig, notes: Path) -> EditorSource:
    """Returns the base model as an editor before its first step."""
    later = note(notes, models_of(base))
    identity = fingerprint("untrained", model_fingerprint(base), _sampling(knobs), *later)
    return EditorSource(identity, lambda: partial(_edit_by_instruction, load_untrained(base, knobs.device), knobs))


def sdedit_source(base: TrainingConfig, knobs: EvaluationConfig, notes: Path) -> EditorSource:
    """Returns the base model by itself, from the noised picture towards the edited caption."""
    later = note(notes, models_of(replace(base, pretrained_vae_model_name_or_path=None)))
    settings = knobs.sdedit_guidance_scale, _sampling(knobs)
    identity = fingerprint("sdedit", model_fingerprint(base), *settings, *later)
    return EditorSource(identity, lambda: partial(_draw_again, load_base(base, knobs.device), base, knobs))


def _sampling(knobs: EvaluationConfig) -> tuple[object, ...]:
    return knobs.num_inference_steps, knobs.resolution


def _edit_by_instruction(
    pipeline: DiffusionPipeline,
    knobs: EvaluationConfig,
    images: Sequence[Pixels],
    cases: Sequence[EditCase],
    seeds: Sequence[int],
    setting: Setting,
) -> list[Pixels]:
    """Edits the pictures by the instructions alone, at the size that is set."""
    from ip2p.editing import edit_images

    return edit_images(
        pipeline,
        _scaled(pipeline, knobs, images),
        [case.edit_prompt for case in cases],
        num_inference_steps=knobs.num_inference_steps,
        guidance_scale=setting.guidance_scale,
        image_guidance_scale=setting.image_guidance_scale,
        seeds=list(seeds),
        batch_size=knobs.batch_size,
    )


def load_untrained(base: TrainingConfig, device: str) -> DiffusionPipeline:
    """Loads the base model, widened: its new input channels are zero, so that it cannot see the picture."""
    import torch

    from ip2p.models.architecture import base_architecture
    from ip2p.models.loading import load_once, resolve_device

    place = resolve_device(device)

    def load() -> DiffusionPipeline:
        architecture = base_architecture(base)
        pipeline = architecture.build_editor(architecture.load_widened(base), base, torch.device(place))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(place)

    names = base.pretrained_model_name_or_path, base.pretrained_vae_model_name_or_path
    return load_once(("untrained", *names, base.revision, base.variant, place), load, files=names)


def load_base(base: TrainingConfig, device: str) -> DiffusionPipeline:
    """Loads the base model by itself, as its text-to-image pipeline."""
    from ip2p.models.pipelines import load_text_to_image

    name = base.pretrained_model_name_or_path
    return load_text_to_image(name, revision=base.revision, variant=base.variant, dtype="float32", device=device)


def _draw_again(
    pipeline: DiffusionPipeline,
    base: TrainingConfig,
    knobs: EvaluationConfig,
    images: Sequence[Pixels],
    cases: Sequence[EditCase],
    seeds: Sequence[int],
    setting: Setting,
) -> list[Pixels]:
    """Draws the pictures again towards the edited captions, equal sizes together."""
    from ip2p.editing import fitting_size
    from ip2p.editing.sdedit import Redrawing, redraw_images

    scaled = _scaled(pipeline, knobs, images)
    fitted = [_resized(image, fitting_size(pipeline, *image.shape[1::-1])) for image in scaled]
    strength = setting.strength or 1.0
    num_steps = max(knobs.num_inference_steps, math.ceil(1 / strength))  # enough for one step at a low strength
    edited = list(images)
    for batch in _batches_of_a_size(fitted, knobs.batch_size):
        redrawings = [
            Redrawing(
                caption=cases[number].edited_prompt or cases[number].edit_prompt,
                guidance_scale=setting.guidance_scale,
                strength=strength,
                seed=seeds[number],
            )
            for number in batch
        ]
        stacked, length = np.stack([fitted[number] for number in batch]), base.max_sequence_length
        again = redraw_images(pipeline, stacked, redrawings, num_steps, max_sequence_length=length)
        for number, image in zip(batch, again, strict=True):
            edited[number] = _resized(image, scaled[number].shape[1::-1])
    return edited


def _batches_of_a_size(images: Sequence[Pixels], batch_size: int) -> Iterator[list[int]]:
    """Yields the numbers of images of equal sizes, a batch at a time."""
    for shape in dict.fromkeys(image.shape for image in images):
        numbers = [number for number, image in enumerate(images) if image.shape == shape]
        yield from (numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size))


def _scaled(pipeline: DiffusionPipeline, knobs: EvaluationConfig, images: Sequence[Pixels]) -> list[Pixels]:
    """Resizes pictures to the short side that is set: 0 is the model's own, None leaves them as they are."""
    from ip2p.models.architecture import architecture_of

    if knobs.resolution is None:
        return list(images)
    short_side = knobs.resolution or architecture_of(pipeline).native_side(pipeline)
    return [_resized(image, fitted_size(image.shape[1::-1], short_side)) for image in images]


def _resized(image: Pixels, size: tuple[int, ...]) -> Pixels:
    if image.shape[1::-1] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[0], size[1]), Image.Resampling.LANCZOS))
