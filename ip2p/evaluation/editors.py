"""What is compared: trained editors, and what shows how much their figures are worth.

The input handed back keeps everything and does nothing; the untrained model cannot see the picture; SDEdit (Meng et
al., 2021) needs no training at all, is told the edited caption, and trades what it keeps for what it does.
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
    """How strongly text and picture act."""

    guidance_scale: float
    image_guidance_scale: float
    strength: float | None = None
    """Share of the noise that SDEdit puts on the picture; None for all others."""

    @property
    def name(self) -> str:
        """`t7.5-i1.5`, or `s0.5` for SDEdit."""
        if self.strength is not None:
            return f"s{self.strength:g}"
        return f"t{self.guidance_scale:g}-i{self.image_guidance_scale:g}"


Editor = Callable[[Sequence[Pixels], Sequence[EditCase], Sequence[int], Setting], list[Pixels]]
"""(images, the cases that say what to do, seeds, setting) to edited images, in the size in which they were edited."""


@dataclass(frozen=True, slots=True)
class EditorSource:
    """An editor that is not loaded yet."""

    identity: str
    """Tells editors apart by what decides their weights."""
    load: Callable[[], Editor]


def copy_source() -> EditorSource:
    """The input handed back."""
    return EditorSource("copy", lambda: lambda images, cases, seeds, setting: list(images))


def editor_source(model: str, knobs: EvaluationConfig, revision: str | None = None) -> EditorSource:
    """A trained editor, of a folder or a hub id."""

    def load() -> Editor:
        from ip2p.editing import load_editor

        return _guided(load_editor(model, knobs.device, revision), knobs)

    return EditorSource(fingerprint("editor", _identity(model, revision), _sampling(knobs)), load)


def untrained_source(base: TrainingConfig, knobs: EvaluationConfig) -> EditorSource:
    """The base model as an editor before its first step."""
    from ip2p.training.data import model_fingerprint

    identity = fingerprint("untrained", model_fingerprint(base), _sampling(knobs))
    return EditorSource(identity, lambda: _guided(load_untrained(base, knobs.device), knobs))


def sdedit_source(base: TrainingConfig, knobs: EvaluationConfig, guidance_scale: float) -> EditorSource:
    """The base model by itself, from the noised picture towards the edited caption, by diffusers' own pipeline."""
    from ip2p.training.data import model_fingerprint

    identity = fingerprint("sdedit", model_fingerprint(base), guidance_scale, _sampling(knobs))
    return EditorSource(identity, lambda: _from_noised_picture(base, knobs, guidance_scale))


def _sampling(knobs: EvaluationConfig) -> tuple[object, ...]:
    return knobs.num_inference_steps, knobs.resolution


def _identity(model: str, revision: str | None) -> str:
    from ip2p.training.data import fingerprint_files

    folder = Path(model).expanduser()
    if not folder.is_dir():
        return fingerprint(model, revision)
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".json", ".txt")]
    return fingerprint_files(files)


def _guided(pipeline: Any, knobs: EvaluationConfig) -> Editor:
    from ip2p.editing import edit_images

    def edit(
        images: Sequence[Pixels], cases: Sequence[EditCase], seeds: Sequence[int], setting: Setting
    ) -> list[Pixels]:
        return edit_images(
            pipeline,
            [scaled_to(image, _side(pipeline, knobs.resolution)) for image in images],
            [case.edit_prompt for case in cases],
            num_inference_steps=knobs.num_inference_steps,
            guidance_scale=setting.guidance_scale,
            image_guidance_scale=setting.image_guidance_scale,
            seeds=list(seeds),
            batch_size=knobs.batch_size,
        )

    return edit


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


def _from_noised_picture(base: TrainingConfig, knobs: EvaluationConfig, guidance_scale: float) -> Editor:
    import torch
    from diffusers import AutoPipelineForImage2Image

    from ip2p.editing import fitting_size
    from ip2p.models import loading

    name, options = base.pretrained_model_name_or_path, {"revision": base.revision, "variant": base.variant}
    drawing = loading.load_text_to_image(name, **options, dtype="float32", device=knobs.device)
    pipeline = AutoPipelineForImage2Image.from_pipe(drawing)
    pipeline.set_progress_bar_config(disable=True)

    def edit_alike(images: Any, texts: list[str], seeds: list[int], strength: float) -> Sequence[Pixels]:
        made = pipeline(
            prompt=texts,
            image=[Image.fromarray(image) for image in images],
            strength=strength,
            num_inference_steps=max(knobs.num_inference_steps, math.ceil(1 / strength)),
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        )
        return [np.asarray(image) for image in made.images]

    def edit(
        images: Sequence[Pixels], cases: Sequence[EditCase], seeds: Sequence[int], setting: Setting
    ) -> list[Pixels]:
        small = [scaled_to(image, _side(pipeline, knobs.resolution)) for image in images]
        fitted = [_resized(image, fitting_size(pipeline, *image.shape[1::-1])) for image in small]
        texts = [case.edited_prompt or case.edit_prompt for case in cases]
        edited = list(images)
        for shape in {image.shape for image in fitted}:
            some = [number for number, image in enumerate(fitted) if image.shape == shape]
            alike = np.stack([fitted[number] for number in some])
            told, noise = [texts[number] for number in some], [seeds[number] for number in some]
            for number, image in zip(some, edit_alike(alike, told, noise, setting.strength or 1.0), strict=True):
                edited[number] = _resized(image, small[number].shape[1::-1])
        return edited

    return edit


def _side(pipeline: Any, resolution: int | None) -> int | None:
    from ip2p.models.architecture import architecture_of

    return architecture_of(pipeline).native_side(pipeline) if resolution == 0 else resolution


def scaled_to(image: Pixels, resolution: int | None) -> Pixels:
    """A picture with its short side at `resolution`; as it is where that is None."""
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
    """The folder of the trained editor; RuntimeError where nothing was trained yet."""
    folder = RunFolder(config.out).model
    if not (folder / "model_index.json").exists():
        raise RuntimeError(f"{folder} holds no trained editor. Train one first, with `ip2p run` or `ip2p train`.")
    return folder
