"""The editors that are compared: trained ones, and baselines that show how much their figures are worth.

The input handed back keeps everything and does nothing; the untrained model cannot see the picture; SDEdit (Meng et
al., 2021) needs no training at all, gets the edited caption, and trades what it keeps for what it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ip2p.config import EvaluationConfig, PipelineConfig, TrainingConfig, fingerprint
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.store import RunFolder

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
        """`t7.5-i1.5`, or `s0.5` for SDEdit."""
        if self.strength is not None:
            return f"s{self.strength:g}"
        return f"t{self.guidance_scale:g}-i{self.image_guidance_scale:g}"


EditFunction = Callable[[Sequence[Pixels], Sequence[EditCase], Sequence[int], Setting], list[Pixels]]
"""(images, cases with the instructions, seeds, setting) to edited images, in the size in which they were edited."""


@dataclass(frozen=True, slots=True)
class EditorSource:
    """An editor that is not loaded yet."""

    identity: str
    """Hash of what decides its edits: weights and sampling."""
    load: Callable[[], EditFunction]


def copy_source() -> EditorSource:
    """Returns the editor that hands the input back."""
    return EditorSource("copy", lambda: lambda images, cases, seeds, setting: list(images))


def editor_source(model: str, knobs: EvaluationConfig, revision: str | None = None) -> EditorSource:
    """Returns a trained editor from a folder or a hub id."""

    def load() -> EditFunction:
        from ip2p.editing import load_editor

        return _InstructionEdit(load_editor(model, knobs.device, revision), knobs)

    return EditorSource(fingerprint("editor", _identity(model, revision), _sampling(knobs)), load)


def untrained_source(base: TrainingConfig, knobs: EvaluationConfig) -> EditorSource:
    """Returns the base model as an editor before its first step."""
    from ip2p.training.data import model_fingerprint

    identity = fingerprint("untrained", model_fingerprint(base), _sampling(knobs))
    return EditorSource(identity, lambda: _InstructionEdit(load_untrained(base, knobs.device), knobs))


def sdedit_source(base: TrainingConfig, knobs: EvaluationConfig, guidance_scale: float) -> EditorSource:
    """Returns the base model by itself, from the noised picture towards the edited caption."""
    from ip2p.training.data import model_fingerprint

    identity = fingerprint("sdedit", model_fingerprint(base), guidance_scale, _sampling(knobs))
    return EditorSource(identity, lambda: _load_sdedit(base, knobs, guidance_scale))


def _sampling(knobs: EvaluationConfig) -> tuple[object, ...]:
    return knobs.num_inference_steps, knobs.resolution


def _identity(model: str, revision: str | None) -> str:
    from ip2p.training.data import fingerprint_files

    folder = Path(model).expanduser()
    if not folder.is_dir():
        return fingerprint(model, revision)
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".json", ".txt")]
    return fingerprint_files(files)


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
            [scaled_to(image, _short_side(self.pipeline, self.knobs.resolution)) for image in images],
            [case.edit_prompt for case in cases],
            num_inference_steps=self.knobs.num_inference_steps,
            guidance_scale=setting.guidance_scale,
            image_guidance_scale=setting.image_guidance_scale,
            seeds=list(seeds),
            batch_size=self.knobs.batch_size,
        )


def load_untrained(base: TrainingConfig, device: str) -> DiffusionPipeline:
    """The base model, widened: its new input channels are zero, so that it cannot see the picture."""
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


def _load_sdedit(base: TrainingConfig, knobs: EvaluationConfig, guidance_scale: float) -> EditFunction:
    from diffusers import AutoPipelineForImage2Image

    from ip2p.models import loading

    name, options = base.pretrained_model_name_or_path, {"revision": base.revision, "variant": base.variant}
    text_to_image = loading.load_text_to_image(name, **options, dtype="float32", device=knobs.device)
    pipeline = AutoPipelineForImage2Image.from_pipe(text_to_image)
    pipeline.set_progress_bar_config(disable=True)
    return _SdeditEdit(pipeline, knobs, guidance_scale)


@dataclass(frozen=True, slots=True)
class _SdeditEdit:
    """Noises the picture and draws it again towards the edited caption, by diffusers' own pipeline."""

    pipeline: Any
    knobs: EvaluationConfig
    guidance_scale: float

    def __call__(
        self, images: Sequence[Pixels], cases: Sequence[EditCase], seeds: Sequence[int], setting: Setting
    ) -> list[Pixels]:
        """Draws pictures of one size together and returns them in the size that the settings name."""
        from ip2p.editing import fitting_size

        side = _short_side(self.pipeline, self.knobs.resolution)
        scaled = [scaled_to(image, side) for image in images]
        fitted = [_resized(image, fitting_size(self.pipeline, *image.shape[1::-1])) for image in scaled]
        captions = [case.edited_prompt or case.edit_prompt for case in cases]
        edited = list(images)
        for shape in {image.shape for image in fitted}:
            numbers = [number for number, image in enumerate(fitted) if image.shape == shape]
            drawn = self._draw(
                [fitted[number] for number in numbers],
                [captions[number] for number in numbers],
                [seeds[number] for number in numbers],
                setting.strength or 1.0,
            )
            for number, image in zip(numbers, drawn, strict=True):
                edited[number] = _resized(image, scaled[number].shape[1::-1])
        return edited

    def _draw(
        self, images: Sequence[Pixels], captions: list[str], seeds: Sequence[int], strength: float
    ) -> list[Pixels]:
        """Draws pictures of one size in a batch; a low strength gets the steps that it takes for one at least."""
        import torch

        output = self.pipeline(
            prompt=captions,
            image=[Image.fromarray(image) for image in images],
            strength=strength,
            num_inference_steps=max(self.knobs.num_inference_steps, math.ceil(1 / strength)),
            guidance_scale=self.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        )
        return [np.asarray(image) for image in output.images]


def _short_side(pipeline: Any, resolution: int | None) -> int | None:
    from ip2p.models.architecture import architecture_of

    return architecture_of(pipeline).native_side(pipeline) if resolution == 0 else resolution


def scaled_to(image: Pixels, resolution: int | None) -> Pixels:
    """Resizes a picture to a short side of `resolution`; unchanged if that is None."""
    if resolution is None:
        return image
    height, width = image.shape[:2]
    factor = resolution / min(height, width)
    return _resized(image, (max(1, round(width * factor)), max(1, round(height * factor))))


def _resized(image: Pixels, size: tuple[int, ...]) -> Pixels:
    if image.shape[1::-1] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[0], size[1]), Image.Resampling.LANCZOS))


def trained_model(config: PipelineConfig) -> Path:
    """Returns the folder of the trained editor. RuntimeError if nothing was trained yet."""
    folder = RunFolder(config.out).model
    if not (folder / "model_index.json").exists():
        raise RuntimeError(f"{folder} holds no trained editor. Train one first, with `ip2p run` or `ip2p train`.")
    return folder
