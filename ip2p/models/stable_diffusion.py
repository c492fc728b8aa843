"""Stable Diffusion 1.x and 2.x: a UNet that reads the states of one CLIP text encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from diffusers import (
    DiffusionPipeline,
    ModelMixin,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import Attention
from diffusers.utils import convert_state_dict_to_diffusers
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ip2p.config import TrainingConfig
from ip2p.models.architecture import Architecture, AttentionLayers
from ip2p.models.components import freeze, load_config, load_model, load_part, load_vae, pixels_per_latent
from ip2p.models.noise.discrete import DiscreteNoise
from ip2p.models.quantization import quantization_options
from ip2p.models.texts import Texts, hidden_states


@dataclass(frozen=True, slots=True)
class ClipTexts:
    """CLIP text encoders, of which the first is read at its last layer."""

    tokenizers: Sequence[CLIPTokenizer]
    encoders: Sequence[CLIPTextModel]
    offset: int = field(default=0, init=False)

    @property
    def lengths(self) -> Sequence[int]:
        """The tokens that each of the tokenizers reads."""
        return [int(tokenizer.model_max_length) for tokenizer in self.tokenizers]

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Texts:
        return Texts(hidden_states(self.encoders[0], self.tokenizers[0], texts))


class StableDiffusion(Architecture):
    """Stable Diffusion 1.x and 2.x."""

    title = "Stable Diffusion 1.x or 2.x"
    text_to_image = StableDiffusionPipeline
    editor = StableDiffusionInstructPix2PixPipeline
    relatives = (StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline)
    noise = DiscreteNoise
    part = "unet"
    widened = "conv_in"
    edges = ("conv_in.", "conv_out.")
    adapted = ("to_k", "to_q", "to_v", "to_out.0")
    added_embeddings: tuple[str | None, ...] = (None,)
    """Which embeddings the UNet may take beside the text."""

    def load_denoiser(self, config: TrainingConfig) -> ModelMixin:
        revision = config.non_ema_revision or config.revision
        options = {"revision": revision, **quantization_options(config, self.edges)}
        unet = load_model(UNet2DConditionModel, config, self.part, torch_dtype=torch.float32, **options)
        if unet.config.addition_embed_type not in self.added_embeddings:
            raise ValueError(
                f"{config.pretrained_model_name_or_path} takes {unet.config.addition_embed_type} embeddings, which the "
                f"trainer does not give to a {self.title}. Start from another model."
            )
        return unet

    def widen(self, denoiser: ModelMixin, in_channels: int) -> ModelMixin:
        return widen_conv_in(denoiser, in_channels)

    def in_channels(self, denoiser: ModelMixin) -> int:
        return int(denoiser.config.in_channels)

    def predict(
        self,
        denoiser: ModelMixin,
        latents: Tensor,
        timesteps: Tensor,
        texts: Texts,
        *,
        condition: Tensor | None = None,
        sizes: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        inputs = latents if condition is None else torch.cat([latents, condition], dim=1)
        options = {"added_cond_kwargs": self._added(texts, sizes), "return_dict": False}
        prediction: Tensor = denoiser(inputs, timesteps, encoder_hidden_states=texts.hidden, **options)[0]
        return prediction

    def _added(self, texts: Texts, sizes: Tensor | None) -> dict[str, Tensor] | None:
        """Returns what the UNet takes beside the text."""
        return None

    def bucket_step(self, config: TrainingConfig) -> int:
        """Returns multiples that the UNet can halve as often as it does."""
        halvings = len(load_config(UNet2DConditionModel, config, self.part)["block_out_channels"]) - 1
        return math.lcm(16, 2**halvings * pixels_per_latent(config))

    def attention_layers(self, denoiser: ModelMixin) -> AttentionLayers:
        layers = [layer for layer in denoiser.modules() if isinstance(layer, Attention)]
        to_text = [layer for layer in layers if layer.is_cross_attention]
        return AttentionLayers([layer for layer in layers if not layer.is_cross_attention], to_text)

    def text_encoders(self, pipeline: DiffusionPipeline, max_sequence_length: int | None = None) -> ClipTexts:
        return ClipTexts([pipeline.tokenizer], [pipeline.text_encoder])

    def load_text_encoders(self, config: TrainingConfig, device: torch.device) -> ClipTexts:
        tokenizer = load_part(CLIPTokenizer, config, "tokenizer")
        encoder = load_model(CLIPTextModel, config, "text_encoder", dtype=torch.float32)
        return ClipTexts([tokenizer], [freeze(encoder, device)])

    def latent_shape(self, pipeline: DiffusionPipeline) -> tuple[int, int, int]:
        own = self.denoiser(pipeline).config.sample_size
        height, width = (own, own) if isinstance(own, int) else own
        return int(pipeline.vae.config.latent_channels), height, width

    def build_editor(self, denoiser: ModelMixin, config: TrainingConfig, device: torch.device) -> DiffusionPipeline:
        parts = self.parts_of_editor(denoiser, self.load_text_encoders(config, device), config, device)
        return self.editor(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)

    def parts_of_editor(
        self, denoiser: ModelMixin, texts: ClipTexts, config: TrainingConfig, device: torch.device
    ) -> dict[str, Any]:
        """Loads the parts of an editor's pipeline that are not given."""
        parts = {"vae": load_vae(config, device), "unet": denoiser, "scheduler": self.noise.load_scheduler(config)}
        for suffix, tokenizer, encoder in zip(("", "_2"), texts.tokenizers, texts.encoders, strict=False):
            parts |= {f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": encoder}
        return parts

    def name_adapter(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        named: dict[str, Tensor] = convert_state_dict_to_diffusers(weights)
        return named

    def load_editor(self, source: str, **options: Any) -> DiffusionPipeline:
        return super().load_editor(source, safety_checker=None, requires_safety_checker=False, **options)


def widen_conv_in(unet: UNet2DConditionModel, in_channels: int) -> UNet2DConditionModel:
    """Widens the first convolution in place: weights and bias kept, new channels zero. A wide UNet is left alone."""
    unet.conv_in = widened_conv(unet.conv_in, in_channels, "conv_in")
    unet.register_to_config(in_channels=in_channels)
    return unet


def widened_conv(old: nn.Conv2d, in_channels: int, name: str) -> nn.Conv2d:
    """Returns a convolution that takes more channels, the new ones with zero weights; one that does is left alone."""
    if old.in_channels == in_channels:
        return old
    if old.in_channels > in_channels:
        raise ValueError(f"{name} takes {old.in_channels} channels, expected at most {in_channels}. Use another base.")
    kernel, stride, padding = (cast("tuple[int, int]", each) for each in (old.kernel_size, old.stride, old.padding))
    new = nn.Conv2d(in_channels, old.out_channels, kernel, stride, padding, bias=old.bias is not None)
    new = new.to(device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels].copy_(old.weight)
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    return new


ARCHITECTURE = StableDiffusion()
