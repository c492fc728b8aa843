"""Loads a trained editor, once per process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
)

from ip2p.console import first_line
from ip2p.models.loading import check_model_source, load_once, resolve_device, resolve_dtype


def load_editor(path: str, device: str = "auto", revision: str | None = None, dtype: str = "float32") -> Any:
    """The editor of a folder or a hub id, Stable Diffusion or XL, anew where the folder was written since.

    ValueError where it is none.
    """
    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)
    key = ("editor", path, revision, place, precision, _written_at(path))
    return load_once(key, lambda: _load(path, revision, place, getattr(torch, precision)))


def _written_at(path: str) -> int | None:
    index = Path(path) / "model_index.json"
    return index.stat().st_mtime_ns if index.is_file() else None


def _load(path: str, revision: str | None, device: str, dtype: torch.dtype) -> Any:
    source = check_model_source(path, what="the editor", marker="model_index.json")
    try:
        options: dict[str, Any] = {"revision": revision, "use_safetensors": True, "dtype": dtype}
        if "text_encoder_2" in DiffusionPipeline.load_config(source, revision=revision):
            pipeline = StableDiffusionXLInstructPix2PixPipeline.from_pretrained(source, **options)
            if dtype == torch.float16 and getattr(pipeline.vae.config, "force_upcast", False):
                pipeline.vae.to(torch.float32)  # it overflows in float16, and pictures come out black
        else:
            options |= {"safety_checker": None, "requires_safety_checker": False}
            pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        first = first_line(error)
        raise ValueError(f"could not load the editor {path}: {first} Give a finished run's model folder.") from error
    channels, latents = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if channels != 2 * latents:
        raise ValueError(f"conv_in of {path} takes {channels} channels, expected {2 * latents}. Train it as an editor.")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
