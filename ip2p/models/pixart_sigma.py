"""PixArt-Sigma: a diffusion transformer that reads T5 in layers of its own, as a UNet reads CLIP; it renders only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from diffusers import DiffusionPipeline, ModelMixin, PixArtSigmaPipeline
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from ip2p.models.architecture import Architecture, AttentionLayers
from ip2p.models.noise.discrete import DiscreteNoise
from ip2p.models.texts import Texts, tokenize

NUM_TOKENS = 300
"""The tokens that T5 reads in diffusers' pipeline."""


@dataclass(frozen=True, slots=True)
class MaskedT5:
    """A T5 whose padding is not attended to."""

    tokenizer: PreTrainedTokenizerBase
    encoder: T5EncoderModel
    num_tokens: int
    offset: int = field(default=0, init=False)

    @property
    def tokenizers(self) -> Sequence[PreTrainedTokenizerBase]:
        """T5's alone."""
        return [self.tokenizer]

    @property
    def lengths(self) -> Sequence[int]:
        """The tokens that it reads."""
        return [self.num_tokens]

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Texts:
        """Encodes texts in lower case, as the model was trained."""
        tokens = tokenize(self.tokenizer, [text.lower().strip() for text in texts], self.num_tokens)
        mask = tokens.attention_mask.to(self.encoder.device)
        hidden = self.encoder(tokens.input_ids.to(self.encoder.device), attention_mask=mask)[0]
        return Texts(hidden, mask=mask)


class PixArtSigma(Architecture):
    """PixArt-Sigma."""

    title = "PixArt-Sigma"
    text_to_image = PixArtSigmaPipeline
    noise = DiscreteNoise
    part = "transformer"
    widened = "pos_embed.proj"
    edges = ("pos_embed.", "adaln_single.", "caption_projection.", "proj_out.")
    adapted = ("to_q", "to_k", "to_v", "to_out.0")
    patch = 2

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
        prediction: Tensor = denoiser(
            latents,
            encoder_hidden_states=texts.hidden,
            encoder_attention_mask=texts.mask,
            timestep=timesteps.expand(len(latents)),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return prediction[:, : latents.shape[1]]  # the rest are variances, which no sampler here reads

    def attention_layers(self, denoiser: ModelMixin) -> AttentionLayers:
        blocks = denoiser.transformer_blocks
        return AttentionLayers([block.attn1 for block in blocks], [block.attn2 for block in blocks])

    def text_encoders(self, pipeline: DiffusionPipeline, max_sequence_length: int | None = None) -> MaskedT5:
        num_tokens = NUM_TOKENS if max_sequence_length is None else max_sequence_length
        return MaskedT5(pipeline.tokenizer, pipeline.text_encoder, num_tokens)

    def latent_shape(self, pipeline: DiffusionPipeline) -> tuple[int, int, int]:
        side = int(pipeline.transformer.config.sample_size)
        return int(pipeline.vae.config.latent_channels), side, side


ARCHITECTURE: Architecture = PixArtSigma()
