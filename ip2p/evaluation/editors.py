"""What is compared: the trained editor, its base model widened but not trained, and the input handed back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ip2p.config import PipelineConfig, fingerprint
from ip2p.evaluation.domain import Pixels
from ip2p.store import RunFolder

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MODELS = ("model", "copy", "untrained")
"""The trained editor first, then the two that show what its figures are worth."""

Editor = Callable[[Sequence[Pixels], Sequence[str], Sequence[int], float], list[Pixels]]
"""(images, instructions, seeds, image guidance scale) to edited images."""


def load_named_editor(config: PipelineConfig, name: str) -> Editor:
    """One of `MODELS`, ready to edit."""
    if name == "copy":
        return lambda images, instructions, seeds, image_guidance_scale: list(images)
    from ip2p.editing import edit_images, load_editor

    knobs = config.evaluation
    pipeline: Any = (
        load_editor(str(RunFolder(config.out).model), knobs.device) if name == "model" else load_untrained(config)
    )

    def edit(images: Sequence[Pixels], instructions: Sequence[str], seeds: Sequence[int], scale: float) -> list[Pixels]:
        return edit_images(
            pipeline,
            list(images),
            list(instructions),
            num_inference_steps=knobs.num_inference_steps,
            guidance_scale=knobs.guidance_scale,
            image_guidance_scale=scale,
            seeds=list(seeds),
            batch_size=knobs.batch_size,
        )

    return edit


def load_untrained(config: PipelineConfig) -> DiffusionPipeline:
    """The base model as an editor before its first step: new input channels zero, so that it cannot see the picture."""
    from ip2p import loading

    base, device = config.training, loading.resolve_device(config.evaluation.device)

    def load() -> DiffusionPipeline:
        import torch

        from ip2p.training.components import latent_shape, load_unet
        from ip2p.training.export import build_pipeline
        from ip2p.training.surgery import widen_conv_in

        unet = widen_conv_in(load_unet(base), 2 * latent_shape(base)[0])
        pipeline = build_pipeline(unet, base, torch.device(device))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)

    return loading.load_once(
        ("untrained", base.pretrained_model_name_or_path, base.revision, base.variant, device), load
    )


def fingerprint_editor(config: PipelineConfig, name: str) -> str:
    """Tells editors apart by what decides their weights."""
    if name == "copy":
        return "copy"
    from ip2p.training.source import fingerprint_files, model_fingerprint

    if name == "untrained":
        return fingerprint(name, model_fingerprint(config.training))
    folder = trained_model(config)
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".json", ".txt")]
    return fingerprint(name, fingerprint_files(files))


def trained_model(config: PipelineConfig) -> Path:
    """The folder of the trained editor; RuntimeError where nothing was trained yet."""
    folder = RunFolder(config.out).model
    if not (folder / "model_index.json").exists():
        raise RuntimeError(f"{folder} holds no trained editor. Train one first, with `ip2p run` or `ip2p train`.")
    return folder
