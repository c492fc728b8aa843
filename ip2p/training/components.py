"""Reads the parts of the base model one at a time, so that the encoders are in memory only while they are used."""

from __future__ import annotations

from typing import Any, TypeVar

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, SchedulerMixin, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ip2p.config import TrainingConfig
from ip2p.loading import check_model_source

T = TypeVar("T")


def load_unet(config: TrainingConfig) -> UNet2DConditionModel:
    """The UNet in float32. ValueError where the trainer has no use for its kind."""
    unet: UNet2DConditionModel = _load(UNet2DConditionModel, config, "unet", torch_dtype=torch.float32)
    if unet.config.addition_embed_type is not None:
        raise ValueError(
            f"{config.pretrained_model_name_or_path} wants {unet.config.addition_embed_type} embeddings, which the "
            "trainer does not give. Start from a Stable Diffusion 1.x or 2.x model."
        )
    return unet


def load_vae(config: TrainingConfig, device: torch.device) -> AutoencoderKL:
    """The autoencoder, frozen, in float32."""
    vae: AutoencoderKL = _load(AutoencoderKL, config, "vae", torch_dtype=torch.float32)
    return vae.to(device).eval().requires_grad_(False)


def load_text_encoder(config: TrainingConfig, device: torch.device) -> CLIPTextModel:
    """The text encoder, frozen, in float32."""
    encoder: CLIPTextModel = _load(CLIPTextModel, config, "text_encoder", dtype=torch.float32)
    network: torch.nn.Module = encoder
    network.to(device).eval().requires_grad_(False)
    return encoder


def load_tokenizer(config: TrainingConfig) -> CLIPTokenizer:
    """The tokenizer."""
    tokenizer: CLIPTokenizer = _load(CLIPTokenizer, config, "tokenizer")
    return tokenizer


def load_noise_scheduler(config: TrainingConfig) -> DDPMScheduler:
    """The base's noise schedule, whatever its sampler, in the form that training uses."""
    return _load(DDPMScheduler, config, "scheduler")


def load_sampler(config: TrainingConfig) -> SchedulerMixin:
    """The base's own sampler, for the exported pipeline."""
    scheduler = DDPMScheduler.load_config(_source(config), subfolder="scheduler", revision=config.revision)
    return getattr(diffusers, scheduler["_class_name"]).from_config(scheduler)


def latent_scale(config: TrainingConfig) -> float:
    """What the autoencoder's latents are multiplied with before noise is added."""
    vae = AutoencoderKL.load_config(_source(config), subfolder="vae", revision=config.revision)
    return float(vae.get("scaling_factor", 0.18215))


def latent_channels(config: TrainingConfig) -> int:
    """Channels of the autoencoder's latents."""
    return int(AutoencoderKL.load_config(_source(config), subfolder="vae", revision=config.revision)["latent_channels"])


def _source(config: TrainingConfig) -> str:
    what = "training.pretrained_model_name_or_path"
    return check_model_source(config.pretrained_model_name_or_path, what=what, marker="model_index.json")


def _load(kind: Any, config: TrainingConfig, subfolder: str, **options: Any) -> Any:
    source = _source(config)
    is_model = "torch_dtype" in options or "dtype" in options
    if is_model:
        options |= {"variant": config.variant, "use_safetensors": True}
    try:
        return kind.from_pretrained(source, subfolder=subfolder, revision=config.revision, **options)
    except OSError as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = f"could not load {subfolder} of {source}: {first} Give an existing model folder or a hub id."
        raise ValueError(message) from error
