"""Reads the parts of the base model one at a time, so that the encoders are in memory only while they are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, DiffusionPipeline
from torch import nn

from ip2p.config import TrainingConfig
from ip2p.models.latents import LatentSpace, downsampling, folding_side
from ip2p.models.loading import check_model_source, from_source, weights_in

INDEX = "model_index.json"
Network = TypeVar("Network", bound=nn.Module)


def model_index(config: TrainingConfig) -> dict[str, Any]:
    """Reads the base's model_index.json."""
    return read_index(_source(config), config.revision)


def read_index(source: str, revision: str | None) -> dict[str, Any]:
    """Reads the model_index.json of a folder or a hub id. ValueError if it cannot be read."""
    return dict(from_source(DiffusionPipeline.load_config, source, revision=revision))


def load_model(kind: Any, config: TrainingConfig, part: str, **options: Any) -> Any:
    """Loads a network of the base, in the config's variant or the one that is there."""
    return load_part(kind, config, part, **weights_in(Path(_source(config)) / part, config.variant), **options)


def load_part(kind: Any, config: TrainingConfig, part: str, **options: Any) -> Any:
    """Loads what lies in a folder of the base, such as a tokenizer. ValueError if it cannot be loaded."""
    options = {"revision": config.revision, **options}
    return from_source(kind.from_pretrained, _source(config), **options, subfolder=part)


def load_config(kind: Any, config: TrainingConfig, part: str) -> dict[str, Any]:
    """Reads the config of what lies in a folder of the base."""
    return dict(from_source(kind.load_config, _source(config), subfolder=part, revision=config.revision))


def has_part(index: Mapping[str, Any], name: str) -> bool:
    """Returns True if a pipeline with this model_index.json has a part that may be left out."""
    return bool((index.get(name) or [None])[0])


def encoder_dtype(config: TrainingConfig) -> torch.dtype:
    """Returns bfloat16 for a training in mixed precision: in float32 T5-XXL takes 19 GB, in float16 it overflows."""
    return torch.float32 if config.mixed_precision in ("no", None) else torch.bfloat16


def freeze(network: Network, device: torch.device, dtype: torch.dtype = torch.float32) -> Network:
    """Moves a network to a device, for inference alone; float32 leaves the precision as it is."""
    network = network.to(device) if dtype == torch.float32 else network.to(device, dtype)
    return network.eval().requires_grad_(False)


def load_vae(config: TrainingConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """Loads the autoencoder, frozen."""
    kind = AutoencoderKLFlux2 if folding_side(_vae_config(config)) > 1 else AutoencoderKL
    if replacement := config.pretrained_vae_model_name_or_path:
        weights = weights_in(Path(replacement).expanduser(), None)
        vae = from_source(kind.from_pretrained, replacement, torch_dtype=torch.float32, **weights)
    else:
        vae = load_model(kind, config, "vae", torch_dtype=torch.float32)
    return freeze(vae, device, dtype)


def load_latent_space(config: TrainingConfig) -> LatentSpace:
    """Reads how the autoencoder's latents are normalised."""
    return LatentSpace.of(_vae_config(config))


def latent_shape(config: TrainingConfig) -> tuple[int, int, int]:
    """Returns (C, H, W) of the latents of an image at the config's resolution."""
    vae = _vae_config(config)
    size = config.resolution // _pixels_per_latent(vae)
    return int(vae["latent_channels"]) * folding_side(vae) ** 2, size, size


def pixels_per_latent(config: TrainingConfig) -> int:
    """Returns the side in pixels of the square that a place of the latents stands for."""
    return _pixels_per_latent(_vae_config(config))


def _pixels_per_latent(vae: Mapping[str, Any]) -> int:
    return downsampling(vae) * folding_side(vae)


def _vae_config(config: TrainingConfig) -> dict[str, Any]:
    if replacement := config.pretrained_vae_model_name_or_path:
        return dict(from_source(AutoencoderKL.load_config, replacement))
    return load_config(AutoencoderKL, config, "vae")


def _source(config: TrainingConfig) -> str:
    what = "training.pretrained_model_name_or_path"
    return check_model_source(config.pretrained_model_name_or_path, what=what, marker=INDEX)
