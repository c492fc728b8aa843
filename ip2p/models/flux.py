"""FLUX.1: a transformer over packed patches, told the text by T5's states and CLIP's pooled one.

dev is distilled: it takes the guidance scale as an input, and a pair has one half. schnell takes none; its few steps
were distilled without guidance too, so pairs are best rendered at a scale of 1. Above 1 they get a second half with the
empty text, as every base without distilled guidance does. An editor takes the picture's latents as more channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    FluxControlImg2ImgPipeline,
    FluxControlInpaintPipeline,
    FluxControlPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    ModelMixin,
)
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from ip2p.config import TrainingConfig
from ip2p.models.architecture import WITHOUT_WORDS, Architecture, AttentionLayers, joint_layers
from ip2p.models.components import encoder_dtype, freeze, load_config, load_model, load_part, load_vae
from ip2p.models.noise.flow import FlowNoise
from ip2p.models.quantization import quantization_options
from ip2p.models.texts import Texts, t5_states, tokenize, tokens_read

PATCH = 2
T5_TOKENS = 512
"""The most tokens that T5 reads in diffusers' pipelines, and as many as it reads unless they are told otherwise."""
BEST_BLOCKS = {19: (18, 17, 12, 14, 11)}
"""By number of blocks with two streams, those whose maps show best where words are drawn (Shin et al., 2025)."""


class FluxNoise(FlowNoise):
    """Flow matching whose steps start evenly spread from all noise to one step's share of it."""

    @staticmethod
    def start_sigmas(num_steps: int) -> list[float] | None:
        sigmas: list[float] = np.linspace(1.0, 1 / num_steps, num_steps).tolist()
        return sigmas


@dataclass(frozen=True, slots=True)
class ClipAndT5:
    """T5's states per token, and a CLIP's pooled state per text."""

    clip_tokenizer: CLIPTokenizer
    clip: CLIPTextModel
    t5_tokenizer: PreTrainedTokenizerBase
    t5: T5EncoderModel
    num_t5_tokens: int

    @property
    def tokenizers(self) -> Sequence[PreTrainedTokenizerBase]:
        """T5's alone: CLIP gives a gist of its first tokens."""
        return [self.t5_tokenizer]

    @property
    def lengths(self) -> Sequence[int]:
        """The tokens that T5 reads."""
        return [self.num_t5_tokens]

    @property
    def offset(self) -> int:
        """The states are T5's from the first on."""
        return 0

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Texts:
        ids = tokenize(self.clip_tokenizer, texts).input_ids
        pooled: Tensor = self.clip(ids.to(self.clip.device)).pooler_output
        return Texts(t5_states(self.t5, self.t5_tokenizer, texts, self.num_t5_tokens).to(pooled), pooled)


class Flux(Architecture):
    """FLUX.1 dev and schnell."""

    title = "FLUX.1"
    text_to_image = FluxPipeline
    editor = FluxControlPipeline
    relatives: ClassVar[Sequence[type[DiffusionPipeline]]] = (
        FluxImg2ImgPipeline,
        FluxInpaintPipeline,
        FluxControlImg2ImgPipeline,
        FluxControlInpaintPipeline,
    )
    noise = FluxNoise
    part = "transformer"
    widened: ClassVar[str | None] = "x_embedder"
    edges = ("x_embedder.", "time_text_embed.", "context_embedder.", "norm_out.", "proj_out.")
    adapted = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    unshared = WITHOUT_WORDS
    blocks = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    patch = PATCH
    scales_condition = True
    loading = ", torch_dtype=torch.bfloat16"
    example = 'prompt="make it snowy", control_image=image, width=image.width, height=image.height, guidance_scale=3.5'

    def load_denoiser(self, config: TrainingConfig) -> ModelMixin:
        options = quantization_options(config, self.edges)
        return load_model(FluxTransformer2DModel, config, self.part, torch_dtype=torch.float32, **options)

    def widen(self, denoiser: ModelMixin, in_channels: int) -> ModelMixin:
        out_channels, features = denoiser.out_channels, in_channels * PATCH**2
        denoiser.x_embedder = widened_linear(denoiser.x_embedder, features)
        denoiser.register_to_config(in_channels=features, out_channels=out_channels)
        return denoiser

    def in_channels(self, denoiser: ModelMixin) -> int:
        return int(denoiser.config.in_channels) // PATCH**2

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
        height, width = latents.shape[2:]
        places = places_of(height, width, latents.device)
        return unpacked(call(denoiser, packed(inputs), places, timesteps, texts, guidance), height, width)

    def is_distilled(self, denoiser: ModelMixin) -> bool:
        return bool(denoiser.config.guidance_embeds)

    def takes_guidance(self, config: TrainingConfig) -> bool:
        return bool(load_config(FluxTransformer2DModel, config, self.part).get("guidance_embeds", False))

    def check_training(self, config: TrainingConfig) -> None:
        super().check_training(config)
        length = config.max_sequence_length
        if length is not None and length > T5_TOKENS:
            raise ValueError(
                f"training.max_sequence_length must be at most {T5_TOKENS} for {self.title}, whose pipelines read no "
                f"more tokens, got {length}. Lower it or leave it out."
            )

    def attention_layers(self, denoiser: ModelMixin) -> AttentionLayers:
        double, single = denoiser.transformer_blocks, denoiser.single_transformer_blocks
        return joint_layers(double, single, best=BEST_BLOCKS.get(len(double)), text_first=True)

    def text_encoders(self, pipeline: DiffusionPipeline, max_sequence_length: int | None = None) -> ClipAndT5:
        """An exported editor's T5 tokenizer knows the length that the editor was trained with."""
        parts = pipeline.tokenizer, pipeline.text_encoder, pipeline.tokenizer_2, pipeline.text_encoder_2
        return ClipAndT5(*parts, tokens_read(pipeline.tokenizer_2, max_sequence_length, T5_TOKENS))

    def load_text_encoders(self, config: TrainingConfig, device: torch.device) -> ClipAndT5:
        clip = freeze(load_model(CLIPTextModel, config, "text_encoder", dtype=torch.float32), device)
        t5 = freeze(load_model(T5EncoderModel, config, "text_encoder_2", dtype=encoder_dtype(config)), device)
        tokenizer, t5_tokenizer = (
            load_part(CLIPTokenizer, config, "tokenizer"),
            load_part(AutoTokenizer, config, "tokenizer_2"),
        )
        num_t5_tokens = tokens_read(t5_tokenizer, config.max_sequence_length, T5_TOKENS)
        return ClipAndT5(tokenizer, clip, t5_tokenizer, t5, num_t5_tokens)

    def latent_shape(self, pipeline: DiffusionPipeline) -> tuple[int, int, int]:
        side = int(pipeline.default_sample_size)
        return int(pipeline.vae.config.latent_channels), side, side

    def build_editor(self, denoiser: ModelMixin, config: TrainingConfig, device: torch.device) -> DiffusionPipeline:
        texts = self.load_text_encoders(config, device)
        texts.t5_tokenizer.model_max_length = texts.num_t5_tokens
        return self.editor(
            scheduler=self.noise.load_scheduler(config),
            vae=load_vae(config, device),
            text_encoder=texts.clip,
            tokenizer=texts.clip_tokenizer,
            text_encoder_2=texts.t5,
            tokenizer_2=texts.t5_tokenizer,
            transformer=denoiser,
        )

    def call_options(self, picture: Image.Image, instruction: str) -> dict[str, Any]:
        width, height = picture.size
        return {"prompt": instruction, "control_image": picture, "width": width, "height": height}


def packed(latents: Tensor) -> Tensor:
    """Packs (N, C, h, w) latents to (N, h w / 4, 4 C): each square of four is a position."""
    num, channels, height, width = latents.shape
    squares = latents.reshape(num, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(num, -1, channels * PATCH**2)


def unpacked(positions: Tensor, height: int, width: int) -> Tensor:
    """Undoes `packed`, to latents of a height and width."""
    squares = positions.reshape(len(positions), height // PATCH, width // PATCH, -1, PATCH, PATCH)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(len(positions), -1, height, width)


def places_of(height: int, width: int, device: torch.device, *, picture: int = 0) -> Tensor:
    """Returns the (h w / 4, 3) ids of packed latents: the number of the picture, row and column."""
    ends = (picture, picture + 1), (0, height // PATCH), (0, width // PATCH)
    return torch.cartesian_prod(*(torch.arange(first, end, device=device) for first, end in ends)).float()


def call(
    denoiser: nn.Module, inputs: Tensor, places: Tensor, timesteps: Tensor, texts: Texts, guidance: Tensor | None
) -> Tensor:
    """Calls the transformer on packed inputs; the text has no places of its own."""
    prediction: Tensor = denoiser(
        hidden_states=inputs,
        encoder_hidden_states=texts.hidden,
        pooled_projections=texts.pooled,
        timestep=timesteps.expand(len(inputs)) / 1000,
        img_ids=places,
        txt_ids=places.new_zeros(texts.hidden.shape[1], 3),
        guidance=guidance,
        return_dict=False,
    )[0]
    return prediction


def widened_linear(old: nn.Linear, in_features: int) -> nn.Linear:
    """Returns a layer that takes more features, the new ones with zero weights; one that does is left alone."""
    if old.in_features == in_features:
        return old
    if old.in_features > in_features:
        raise ValueError(
            f"x_embedder takes {old.in_features} features, expected at most {in_features}. Use another base."
        )
    new = nn.Linear(in_features, old.out_features, bias=old.bias is not None)
    new = new.to(device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_features].copy_(old.weight)
        if old.bias is not None:
            new.bias.copy_(old.bias)
    return new


ARCHITECTURE: Architecture = Flux()
