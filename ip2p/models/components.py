"""Reads the parts of the base model one at a time, so that the encoders are in memory only while they are used."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ip2p.config import TrainingConfig
from ip2p.console import first_line
from ip2p.models.loading import check_model_source

T = TypeVar("T")


def is_xl(config: TrainingConfig) -> bool:
    """Whether the base is a Stable Diffusion XL: two text encoders, and a UNet that is told sizes and crops."""
    return "text_encoder_2" in model_index(config)


def model_index(config: TrainingConfig) -> dict[str, Any]:
    """The base's model_index.json."""
    found: dict[str, Any] = DiffusionPipeline.load_config(_source(config), revision=config.revision)
    return found


def load_unet(config: TrainingConfig) -> UNet2DConditionModel:
    """The UNet in float32. ValueError where the trainer has no use for its kind."""
    revision = config.non_ema_revision or config.revision
    unet: UNet2DConditionModel = _load(
        UNet2DConditionModel, config, "unet", torch_dtype=torch.float32, revision=revision
    )
    if unet.config.addition_embed_type not in (None, "text_time"):
        raise ValueError(
            f"{config.pretrained_model_name_or_path} wants {unet.config.addition_embed_type} embeddings, which the "
            "trainer does not give. Start from a Stable Diffusion 1.x, 2.x or XL model."
        )
    return unet


def load_vae(config: TrainingConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The autoencoder, frozen."""
    vae: AutoencoderKL
    if config.pretrained_vae_model_name_or_path:
        vae = _from_pretrained(AutoencoderKL, config.pretrained_vae_model_name_or_path, torch_dtype=torch.float32)
    else:
        vae = _load(AutoencoderKL, config, "vae", torch_dtype=torch.float32)
    vae = vae.to(device) if dtype == torch.float32 else vae.to(device, dtype)
    return vae.eval().requires_grad_(False)


def load_text_encoder(config: TrainingConfig, device: torch.device) -> CLIPTextModel:
    """The text encoder, frozen, in float32."""
    encoder: CLIPTextModel = _load(CLIPTextModel, config, "text_encoder", dtype=torch.float32)
    return _frozen(encoder, device)


def load_second_text_encoder(config: TrainingConfig, device: torch.device) -> CLIPTextModelWithProjection:
    """The second text encoder of a Stable Diffusion XL, frozen, in float32."""
    kind, part = CLIPTextModelWithProjection, "text_encoder_2"
    encoder: CLIPTextModelWithProjection = _load(kind, config, part, dtype=torch.float32)
    return _frozen(encoder, device)


def _frozen(encoder: T, device: torch.device) -> T:
    network = cast(torch.nn.Module, encoder)
    network.to(device).eval().requires_grad_(False)
    return encoder


def load_tokenizer(config: TrainingConfig, subfolder: str = "tokenizer") -> CLIPTokenizer:
    """A tokenizer: `tokenizer`, or `tokenizer_2` of a Stable Diffusion XL."""
    tokenizer: CLIPTokenizer = _load(CLIPTokenizer, config, subfolder)
    return tokenizer


def load_noise_scheduler(config: TrainingConfig) -> DDPMScheduler:
    """The base's noise schedule, whatever its sampler, in the form that training uses."""
    return _load(DDPMScheduler, config, "scheduler")


def load_sampler(config: TrainingConfig) -> SchedulerMixin:
    """The base's own sampler, for the exported pipeline, with the prediction type that was trained."""
    scheduler = DDPMScheduler.load_config(_source(config), subfolder="scheduler", revision=config.revision)
    changes = {"prediction_type": config.prediction_type} if config.prediction_type else {}
    return getattr(diffusers, scheduler["_class_name"]).from_config(scheduler, **changes)


def latent_scale(config: TrainingConfig) -> float:
    """What the autoencoder's latents are multiplied with before noise is added."""
    return float(_vae_config(config).get("scaling_factor", 0.18215))


def latent_shape(config: TrainingConfig) -> tuple[int, int, int]:
    """(C, H, W) of the latents of an image at the config's resolution."""
    vae = _vae_config(config)
    size = config.resolution // 2 ** (len(vae["block_out_channels"]) - 1)
    return int(vae["latent_channels"]), size, size


def _vae_config(config: TrainingConfig) -> dict[str, Any]:
    found: dict[str, Any]
    if config.pretrained_vae_model_name_or_path:
        found = AutoencoderKL.load_config(config.pretrained_vae_model_name_or_path)
    else:
        found = AutoencoderKL.load_config(_source(config), subfolder="vae", revision=config.revision)
    return found


def _source(config: TrainingConfig) -> str:
    what = "training.pretrained_model_name_or_path"
    return check_model_source(config.pretrained_model_name_or_path, what=what, marker="model_index.json")


def _load(kind: Any, config: TrainingConfig, subfolder: str, **options: Any) -> Any:
    options = {"revision": config.revision, **options}
    if "torch_dtype" in options or "dtype" in options:  # a model
        options |= {"variant": config.variant, "use_safetensors": True}
    return _from_pretrained(kind, _source(config), subfolder=subfolder, **options)


def _from_pretrained(kind: Any, source: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(source, **options)
    except OSError as error:
        first = first_line(error)
        what = f"{options['subfolder']} of {source}" if "subfolder" in options else source
        raise ValueError(f"could not load {what}: {first} Give an existing model folder or a hub id.") from error


def widen_conv_in(unet: UNet2DConditionModel, in_channels: int) -> UNet2DConditionModel:
    """Widens the first convolution in place: weights and bias kept, new channels zero. A wide UNet is left alone."""
    old = unet.conv_in
    if old.in_channels == in_channels:
        return unet
    if old.in_channels > in_channels:
        raise ValueError(f"conv_in takes {old.in_channels} channels, expected at most {in_channels}. Use another UNet.")
    new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    new = new.to(device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels].copy_(old.weight)
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=in_channels)
    return unet
