"""Stable Diffusion 3 and 3.5: a transformer in which patches and texts attend to each other; texts of CLIP and T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    DiffusionPipeline,
    ModelMixin,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from ip2p.config import TrainingConfig
from ip2p.models.architecture import WITHOUT_WORDS, Architecture, AttentionLayers, joint_layers
from ip2p.models.components import (
    encoder_dtype,
    freeze,
    has_part,
    load_config,
    load_model,
    load_part,
    load_vae,
    model_index,
)
from ip2p.models.noise.flow import FlowNoise
from ip2p.models.quantization import quantization_options
from ip2p.models.stable_diffusion import widened_conv
from ip2p.models.stable_diffusion_3_instruct_pix2pix import StableDiffusion3InstructPix2PixPipeline
from ip2p.models.texts import Texts, t5_states, tokenize

T5_TOKENS = 256
"""The tokens that T5 reads in diffusers' pipeline. Without a T5 as many zeros stand in their place."""
BEST_BLOCKS = {24: (7, 8, 5, 4, 9), 38: (18, 21, 20, 24, 16)}
"""By number of blocks, those whose maps show best where words are drawn (Shin et al., 2025)."""


@dataclass(frozen=True, slots=True)
class ClipsAndT5:
    """Two CLIP text encoders, side by side along the features, then a T5 or zeros in its place."""

    clip_tokenizers: Sequence[CLIPTokenizer]
    clips: Sequence[CLIPTextModelWithProjection]
    t5_tokenizer: PreTrainedTokenizerBase | None
    t5: T5EncoderModel | None
    num_t5_tokens: int
    width: int
    """Features of a text's states; CLIP's are filled up with zeros."""

    @property
    def tokenizers(self) -> Sequence[PreTrainedTokenizerBase]:
        """T5's, which reads more of a text than CLIP's; theirs if there is none."""
        return self.clip_tokenizers if self.t5_tokenizer is None else [self.t5_tokenizer]

    @property
    def lengths(self) -> Sequence[int]:
        """The tokens that each of the tokenizers reads."""
        if self.t5_tokenizer is not None:
            return [self.num_t5_tokens]
        return [self._num_clip_tokens] * len(self.clip_tokenizers)

    @property
    def offset(self) -> int:
        """The place of the first tokenizer's first token among a text's states."""
        return 0 if self.t5_tokenizer is None else self._num_clip_tokens

    @property
    def _num_clip_tokens(self) -> int:
        return int(self.clip_tokenizers[0].model_max_length)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Texts:
        outputs = []
        for tokenizer, encoder in zip(self.clip_tokenizers, self.clips, strict=True):
            ids = tokenize(tokenizer, texts, self._num_clip_tokens).input_ids
            outputs.append(encoder(ids.to(encoder.device), output_hidden_states=True))
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        states = F.pad(states, (0, self.width - states.shape[-1]))
        if self.t5 is not None and self.t5_tokenizer is not None:
            further = t5_states(self.t5, self.t5_tokenizer, texts, self.num_t5_tokens).to(states)
        else:
            further = states.new_zeros(len(texts), self.num_t5_tokens, self.width)
        return Texts(torch.cat([states, further], dim=1), torch.cat([output.text_embeds for output in outputs], dim=-1))


class StableDiffusion3(Architecture):
    """Stable Diffusion 3 and 3.5."""

    title = "Stable Diffusion 3 or 3.5"
    text_to_image = StableDiffusion3Pipeline
    editor = StableDiffusion3InstructPix2PixPipeline
    relatives = (StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline)
    noise = FlowNoise
    part = "transformer"
    widened = "pos_embed.proj"
    edges = ("pos_embed.", "time_text_embed.", "context_embedder.", "norm_out.", "proj_out.")
    adapted = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    unshared = WITHOUT_WORDS
    blocks = ("JointTransformerBlock",)
    patch = 2
    scales_condition = True

    def load_denoiser(self, config: TrainingConfig) -> ModelMixin:
        options = quantization_options(config, self.edges)
        return load_model(SD3Transformer2DModel, config, self.part, torch_dtype=torch.float32, **options)

    def widen(self, denoiser: ModelMixin, in_channels: int) -> ModelMixin:
        out_channels = denoiser.out_channels
        denoiser.pos_embed.proj = widened_conv(denoiser.pos_embed.proj, in_channels, self.widened)
        denoiser.register_to_config(in_channels=in_channels, out_channels=out_channels)
        return denoiser

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
        prediction: Tensor = denoiser(
            inputs,
            timestep=timesteps.expand(len(inputs)),
            encoder_hidden_states=texts.hidden,
            pooled_projections=texts.pooled,
            return_dict=False,
        )[0]
        return prediction

    def load_options(self, index: Mapping[str, Any]) -> dict[str, Any]:
        """Leaves T5 out where the folder does: diffusers takes a pipeline without it only if it is told so."""
        return {name: None for name in ("text_encoder_3", "tokenizer_3") if not has_part(index, name)}

    def attention_layers(self, denoiser: ModelMixin) -> AttentionLayers:
        blocks = denoiser.transformer_blocks
        second = [block.attn2 for block in blocks if block.attn2 is not None]
        return joint_layers(blocks, best=BEST_BLOCKS.get(len(blocks)), to_itself=second)

    def text_encoders(self, pipeline: DiffusionPipeline, max_sequence_length: int | None = None) -> ClipsAndT5:
        if max_sequence_length is None:
            max_sequence_length = pipeline.config.get("max_sequence_length", T5_TOKENS)
        return ClipsAndT5(
            (pipeline.tokenizer, pipeline.tokenizer_2),
            (pipeline.text_encoder, pipeline.text_encoder_2),
            pipeline.tokenizer_3,
            pipeline.text_encoder_3,
            max_sequence_length,
            int(pipeline.transformer.config.joint_attention_dim),
        )

    def load_text_encoders(self, config: TrainingConfig, device: torch.device) -> ClipsAndT5:
        names = ("text_encoder", "text_encoder_2")
        clips = [load_model(CLIPTextModelWithProjection, config, name, dtype=torch.float32) for name in names]
        tokenizers = [load_part(CLIPTokenizer, config, name) for name in ("tokenizer", "tokenizer_2")]
        t5_tokenizer = t5 = None
        if has_part(model_index(config), "text_encoder_3"):
            t5_tokenizer = load_part(AutoTokenizer, config, "tokenizer_3")
            t5 = freeze(load_model(T5EncoderModel, config, "text_encoder_3", dtype=encoder_dtype(config)), device)
        length = T5_TOKENS if config.max_sequence_length is None else config.max_sequence_length
        width = int(load_config(SD3Transformer2DModel, config, self.part)["joint_attention_dim"])
        return ClipsAndT5(tokenizers, [freeze(clip, device) for clip in clips], t5_tokenizer, t5, length, width)

    def latent_shape(self, pipeline: DiffusionPipeline) -> tuple[int, int, int]:
        side = int(pipeline.transformer.config.sample_size)
        return int(pipeline.vae.config.latent_channels), side, side

    def build_editor(self, denoiser: ModelMixin, config: TrainingConfig, device: torch.device) -> DiffusionPipeline:
        texts = self.load_text_encoders(config, device)
        parts: dict[str, Any] = {
            "transformer": denoiser,
            "scheduler": self.noise.load_scheduler(config),
            "vae": load_vae(config, device),
            "text_encoder_3": texts.t5,
            "tokenizer_3": texts.t5_tokenizer,
        }
        for suffix, tokenizer, clip in zip(("", "_2"), texts.clip_tokenizers, texts.clips, strict=True):
            parts |= {f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": clip}
        return self.editor(**parts, max_sequence_length=texts.num_t5_tokens)


ARCHITECTURE: Architecture = StableDiffusion3()
