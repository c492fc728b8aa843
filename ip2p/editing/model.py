"""Loads a trained editor, once per process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import (
    DiffusionPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
)

from ip2p.loading import check_model_source, load_once, resolve_device


def load_editor(path: str, device: str = "auto", revision: str | None = None) -> Any:
    """The editor of a folder or a hub id, Stable Diffusion or XL, anew where the folder was written since.

    ValueError where it is none.
    """
    place = resolve_device(device)
    return load_once(("editor", path, revision, place, _written_at(path)), lambda: _load(path, revision, place))


def _written_at(path: str) -> int | None:
    index = Path(path) / "model_index.json"
    return index.stat().st_mtime_ns if index.is_file() else None


def _load(path: str, revision: str | None, device: str) -> Any:
    source = check_model_source(path, what="the editor", marker="model_index.json")
    try:
        options: dict[str, Any] = {"revision": revision, "use_safetensors": True}
        if "text_encoder_2" in DiffusionPipeline.load_config(source, revision=revision):
            pipeline = StableDiffusionXLInstructPix2PixPipeline.from_pretrained(source, **options)
        else:
            options |= {"safety_checker": None, "requires_safety_checker": False}
            pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"could not load the editor {path}: {first} Give a finished run's model folder.") from error
    channels, latents = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if channels != 2 * latents:
        raise ValueError(f"conv_in of {path} takes {channels} channels, expected {2 * latents}. Train it as an editor.")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
