"""A base that is neither a Stable Diffusion nor a UNet, in one file: what a newcomer writes to add one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline, PixArtTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ip2p.config import TrainingConfig
from ip2p.models.architecture import Architecture, AttentionLayers
from ip2p.models.components import freeze, load_model, load_part, load_vae
from ip2p.models.noise.discrete import DiscreteNoise
from ip2p.models.texts import TextEncoders, Texts, hidden_states


class TinyTransformerPipeline(DiffusionPipeline):  # type: ignore[misc]
    """The parts of a text-to-image model."""

    def __init__(self, vae: Any, text_encoder: Any, tokenizer: Any, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer, scheduler=scheduler
        )

    @property
    def vae_scale_factor(self) -> int:
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


class TinyTransformerEditor(TinyTransformerPipeline):
    """The same parts, the transformer widened."""


@dataclass(frozen=True)
class ZeroForNone:
    """A text encoder of which no text is zeros."""

    tokenizer: Any
    encoder: Any

    @property
    def tokenizers(self) -> Sequence[Any]:
        return [self.tokenizer]

    @property
    def lengths(self) -> Sequence[int]:
        return [self.tokenizer.model_max_length]

    @property
    def offset(self) -> int:
        return 0

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Texts:
        encoded = Texts(hidden_states(self.encoder, self.tokenizer, texts))
        return encoded.replaced(torch.tensor([not text for text in texts]), encoded.map(torch.zeros_like))


class TinyTransformer(Architecture):
    """A diffusion transformer whose patches take the image condition as more channels."""

    title = "Tiny Transformer"
    text_to_image = TinyTransformerPipeline
    editor = TinyTransformerEditor
    noise = DiscreteNoise
    part = "transformer"
    widened = "pos_embed.proj"
    edges = ("pos_embed.", "proj_out.")
    adapted = ("to_q", "to_k", "to_v", "to_out.0")

    def load_denoiser(self, config: TrainingConfig) -> Any:
        return load_model(PixArtTransformer2DModel, config, self.part, torch_dtype=torch.float32)

    def widen(self, denoiser: Any, in_channels: int) -> Any:
        old = denoiser.pos_embed.proj
        if old.in_channels < in_channels:
            new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride)
            with torch.no_grad():
                new.weight.zero_()
                new.weight[:, : old.in_channels].copy_(old.weight)
                new.bias.copy_(old.bias)  # type: ignore[union-attr]
            denoiser.pos_embed.proj = new
            denoiser.register_to_config(in_channels=in_channels)
        return denoiser

    def in_channels(self, denoiser: Any) -> int:
        return int(denoiser.config.in_channels)

    def predict(
        self,
        denoiser: Any,
        latents: Tensor,
        timesteps: Tensor,
        texts: Texts,
        *,
        condition: Tensor | None = None,
        sizes: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        inputs = latents if condition is None else torch.cat([latents, condition], dim=1)
        options = {"timestep": timesteps.expand(len(inputs)), "return_dict": False}
        prediction: Tensor = denoiser(inputs, encoder_hidden_states=texts.hidden, **options)[0]
        return prediction

    def attention_layers(self, denoiser: Any) -> AttentionLayers:
        blocks = denoiser.transformer_blocks
        return AttentionLayers([block.attn1 for block in blocks], [block.attn2 for block in blocks])

    def text_encoders(self, pipeline: Any, max_sequence_length: int | None = None) -> TextEncoders:
        return ZeroForNone(pipeline.tokenizer, pipeline.text_encoder)

    def load_text_encoders(self, config: TrainingConfig, device: torch.device) -> TextEncoders:
        encoder = freeze(load_model(CLIPTextModel, config, "text_encoder", dtype=torch.float32), device)
        return ZeroForNone(load_part(CLIPTokenizer, config, "tokenizer"), encoder)

    def latent_shape(self, pipeline: Any) -> tuple[int, int, int]:
        side = pipeline.transformer.config.sample_size
        return pipeline.vae.config.latent_channels, side, side

    def build_editor(self, denoiser: Any, config: TrainingConfig, device: torch.device) -> Any:
        return TinyTransformerEditor(
            vae=load_vae(config, device),
            text_encoder=freeze(load_model(CLIPTextModel, config, "text_encoder", dtype=torch.float32), device),
            tokenizer=load_part(CLIPTokenizer, config, "tokenizer"),
            transformer=denoiser,
            scheduler=self.noise.load_scheduler(config),
        )


ARCHITECTURE = TinyTransformer()
