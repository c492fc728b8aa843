"""The editors that are compared: trained ones, and baselines that show how much their figures are worth.

The copy preserves everything and changes nothing; the untrained model cannot see the picture; SDEdit (Meng et al.,
2021) needs no training, gets the edited caption, and preserves the less the more it changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ip2p.config import EvaluationConfig, TrainingConfig, fingerprint
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.images import fitted_size

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


def editor_source(model: str, knobs: EvaluationConfig) -> EditorSource:
    """Returns a trained editor from a folder, known by its files, or a hub id."""
    from ip2p.training.data import fingerprint_files

    def load() -> EditFunction:
        from ip2p.editing import load_editor

        return _InstructionEdit(load_editor(model, knobs.device), knobs)

    folder = Path(model).expanduser()
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".json", ".txt")]
    identity = fingerprint_files(files) if folder.is_dir() else fingerprint(model, None)
    return EditorSource(fingerprint("editor", identity, _sampling(knobs)), load)


def untrained_source(base: TrainingConfig, knobs: EvaluationConfig) -> EditorSource:
    """Returns the base model as an editor before its first step."""
    from ip2p.training.data import model_fingerprint

    identity = fingerprint("untrained", model_fingerprint(base), _sampling(knobs))
    return EditorSource(identity, lambda: _InstructionEdit(load_untrained(base, knobs.device), knobs))


def sdedit_source(base: TrainingConfig, knobs: EvaluationConfig) -> EditorSource:
    """Returns the base model by itself, from the noised picture towards the edited caption."""
    from ip2p.training.data import model_fingerprint

    identity = fingerprint("sdedit", model_fingerprint(base), knobs.sdedit_guidance_scale, _sampling(knobs))
    return EditorSource(identity, lambda: _load_sdedit(base, knobs))


def _sampling(knobs: EvaluationConfig) -> tuple[object, ...]:
    return knobs.num_inference_steps, knobs.resolution


@dataclass(frozen=True, slots=True)
class _InstructionEdit:
    """Edits by the instruction alone."""

    pipeline: Any
    knobs: EvaluationConfig

    def __call__(
        self, images: Sequence[Pixels], cases: Sequence[EditCase], seeds: Sequence[int], setting: Setting
    ) -> list[Pixels]:
        """Edits the pictures at the size that the settings name."""
        from ip2p.editing import edit_images

        return edit_images(
            self.pipeline,
            [_scaled_to(image, _short_side(self.pipeline, self.knobs.resolution)) for image in images],
            [case.edit_prompt for case in cases],
            num_inference_steps=self.knobs.num_inference_steps,
            guidance_scale=setting.guidance_scale,
            image_guidance_scale=setting.image_guidance_scale,
            seeds=list(seeds),
            batch_size=self.knobs.batch_size,
        )


def load_untrained(base: TrainingConfig, device: str) -> DiffusionPipeline:
    """Loads the base model, widened: its new input channels are zero, so that it cannot see the picture."""
    from ip2p.models import loading

    place = loading.resolve_device(device)

    def load() -> DiffusionPipeline:
        import torch

        from ip2p.models.architecture import base_architecture

        architecture = base_architecture(base)
        pipeline = architecture.build_editor(architecture.load_widened(base), base, torch.device(place))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(place)

    return loading.load_once(
        ("untrained", base.pretrained_model_name_or_path, base.revision, base.variant, place), load
    )


def _load_sdedit(base: TrainingConfig, knobs: EvaluationConfig) -> EditFunction:
    from diffusers import AutoPipelineForImage2Image

    from ip2p.models import loading

    name, options = base.pretrained_model_name_or_path, {"revision": base.revision, "variant": base.variant}
    text_to_image = loading.load_text_to_image(name, **options, dtype="float32", device=knobs.device)
    pipeline = AutoPipelineForImage2Image.from_pipe(text_to_image)
    pipeline.set_progress_bar_config(disable=True)
    return _SdeditEdit(pipeline, knobs)


@dataclass(frozen=True, slots=True)
class _SdeditEdit:
    """Noises the picture and draws it again towards the edited caption, by diffusers' own pipeline."""

    pipeline: Any
    knobs: EvaluationConfig

    def __call__(
        self, images: Sequence[Pixels], cases: Sequence[EditCase], seeds: Sequence[int], setting: Setting
    ) -> list[Pixels]:
        """Draws pictures of one size together and returns them in the size that the settings name."""
        import torch

        from ip2p.editing import fitting_size

        scaled = [_scaled_to(image, _short_side(self.pipeline, self.knobs.resolution)) for image in images]
        fitted = [_resized(image, fitting_size(self.pipeline, *image.shape[1::-1])) for image in scaled]
        strength = setting.strength or 1.0
        edited = list(images)
        for shape in {image.shape for image in fitted}:
            numbers = [number for number, image in enumerate(fitted) if image.shape == shape]
            drawn = self.pipeline(
                prompt=[cases[number].edited_prompt or cases[number].edit_prompt for number in numbers],
                image=[Image.fromarray(fitted[number]) for number in numbers],
                strength=strength,
                # a low strength still takes one step
                num_inference_steps=max(self.knobs.num_inference_steps, math.ceil(1 / strength)),
                guidance_scale=setting.guidance_scale,
                generator=[torch.Generator().manual_seed(seeds[number]) for number in numbers],
            )
            for number, image in zip(numbers, drawn.images, strict=True):
                edited[number] = _resized(np.asarray(image), scaled[number].shape[1::-1])
        return edited


def _short_side(pipeline: DiffusionPipeline, resolution: int | None) -> int | None:
    from ip2p.models.architecture import architecture_of

    return architecture_of(pipeline).native_side(pipeline) if resolution == 0 else resolution


def _scaled_to(image: Pixels, short_side: int | None) -> Pixels:
    """Resizes a picture to a short side; unchanged if that is None."""
    return image if short_side is None else _resized(image, fitted_size(image.shape[1::-1], short_side))


def _resized(image: Pixels, size: tuple[int, ...]) -> Pixels:
    if image.shape[1::-1] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[0], size[1]), Image.Resampling.LANCZOS))
