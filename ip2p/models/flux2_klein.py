"""FLUX.2 klein: a transformer over folded latents, told the text by layers of a Qwen3; edits by tokens of the picture.

Its base models are not distilled, so a pair has a half without text. The distilled ones need none, whatever the scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    Flux2KleinInpaintPipeline,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    ModelMixin,
    SchedulerMixin,
)
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3ForCausalLM

from ip2p.config import TrainingConfig
from ip2p.models.architecture import WITHOUT_WORDS, Architecture, AttentionLayers, joint_layers
from ip2p.models.components import (
    encoder_dtype,
    freeze,
    load_model,
    load_part,
    load_vae,
    model_index,
)
from ip2p.models.flux import FluxNoise
from ip2p.models.latents import folding_side
from ip2p.models.quantization import quantization_options
from ip2p.models.texts import Texts, tokenize, tokenizer_lock, tokens_read

QWEN_TOKENS = 512
"""The tokens that Qwen3 reads in diffusers' pipelines unless they are told otherwise."""
MARK = "\u241f"
"""Stands for a message while the tokens around it are counted."""
STATES = (9, 18, 27)
"""The layers whose states, side by side, tell the text."""
TIME_OF_PICTURE = 10
"""The first coordinate of the tokens of the picture to edit; that of the noised ones is 0."""


class Flux2Noise(FluxNoise):
    """Flow matching whose steps are shifted by their number too, as fitted by the model's authors."""

    @staticmethod
    def shift(scheduler: SchedulerMixin, num_positions: int, num_steps: int) -> float:
        return float(compute_empirical_mu(num_positions, num_steps))


@dataclass(frozen=True, slots=True)
class Room:
    """The tokens that a chat's first message may take."""

    num_tokens: int
    """All that are read."""
    num_before: int
    """Those of the chat's template before the message."""
    num_free: int
    """Those that the template leaves."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, given: int | None) -> Room:
        """Counts the tokens of a tokenizer's template. ValueError if it leaves none of those that are `given`."""
        num_tokens = tokens_read(tokenizer, given, QWEN_TOKENS)
        parts = message_of(tokenizer, MARK).split(MARK)
        with tokenizer_lock:
            before, behind = (len(tokenizer(part).input_ids) for part in parts)
        if num_tokens <= before + behind:
            raise ValueError(
                f"max_sequence_length must be above {before + behind} for {Flux2Klein.title}, whose chat takes as "
                f"many tokens by itself, got {num_tokens}. Raise it or leave it out."
            )
        return cls(num_tokens, before, num_tokens - before - behind)


def message_of(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Writes a text as the first message of a chat that is answered without thinking."""
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    return str(tokenizer.apply_chat_template([{"role": "user", "content": text}], **options))


@dataclass(frozen=True, slots=True)
class ChattingQwen:
    """States of some layers of a Qwen3 that reads a text as a chat's first message."""

    tokenizer: PreTrainedTokenizerBase
    qwen: Qwen3ForCausalLM
    room: Room

    @property
    def tokenizers(self) -> Sequence[PreTrainedTokenizerBase]:
        """Qwen's."""
        return [self.tokenizer]

    @property
    def lengths(self) -> Sequence[int]:
        """What the chat's template leaves of the tokens."""
        return [self.room.num_free]

    @property
    def offset(self) -> int:
        """The tokens of the template before the text."""
        return self.room.num_before

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Texts:
        tokens = tokenize(self.tokenizer, [message_of(self.tokenizer, text) for text in texts], self.room.num_tokens)
        output = self.qwen.base_model(
            input_ids=tokens.input_ids.to(self.qwen.device),
            attention_mask=tokens.attention_mask.to(self.qwen.device),
            output_hidden_states=True,
            use_cache=False,
        )
        return Texts(torch.cat([output.hidden_states[number] for number in STATES], dim=-1))


class Flux2Klein(Architecture):
    """FLUX.2 klein, an editor as it stands.

    Latents are its autoencoder's, folded. No picture is zeros in the picture's places, which takes a training with
    conditioning dropout.
    """

    title = "FLUX.2 klein"
    text_to_image = Flux2KleinPipeline
    editor = Flux2KleinPipeline
    relatives = (Flux2KleinInpaintPipeline,)
    noise = Flux2Noise
    part = "transformer"
    widened = None
    edges = ("x_embedder.", "time_guidance_embed.", "context_embedder.", "norm_out.", "proj_out.")
    adapted = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        "to_qkv_mlp_proj",
    )
    unshared = WITHOUT_WORDS
    blocks = ("Flux2TransformerBlock", "Flux2SingleTransformerBlock")
    scales_condition = True
    loading = ", torch_dtype=torch.bfloat16"
    example = 'image=image, prompt="make it snowy", guidance_scale=4.0'

    def load_denoiser(self, config: TrainingConfig) -> ModelMixin:
        options = quantization_options(config, self.edges)
        return load_model(Flux2Transformer2DModel, config, self.part, torch_dtype=torch.float32, **options)

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
        height, width = latents.shape[2:]
        inputs, places = tokens_of(latents), places_of(height, width, device=latents.device)
        if condition is not None:
            inputs = torch.cat([inputs, tokens_of(condition)], dim=1)
            rows, columns = condition.shape[2:]
            places = torch.cat([places, places_of(rows, columns, time=TIME_OF_PICTURE, device=latents.device)])
        prediction: Tensor = denoiser(
            hidden_states=inputs,
            timestep=timesteps.expand(len(inputs)) / 1000,
            encoder_hidden_states=texts.hidden,
            txt_ids=places_of_text(texts.hidden.shape[1], device=latents.device),
            img_ids=places,
            return_dict=False,
        )[0]
        return prediction[:, : height * width].mT.reshape(latents.shape)

    def has_one_half(self, pipeline: DiffusionPipeline) -> bool:
        return bool(pipeline.config.is_distilled)

    def check_training(self, config: TrainingConfig) -> None:
        super().check_training(config)
        if config.max_sequence_length is not None:
            Room.of(load_part(AutoTokenizer, config, "tokenizer"), config.max_sequence_length)
        self._check_resolution(config, "whose tokens are as wide")

    def attention_layers(self, denoiser: ModelMixin) -> AttentionLayers:
        return joint_layers(denoiser.transformer_blocks, denoiser.single_transformer_blocks, text_first=True)

    def text_encoders(self, pipeline: DiffusionPipeline, max_sequence_length: int | None = None) -> ChattingQwen:
        """An exported editor's tokenizer knows the length that the editor was trained with."""
        tokenizer = pipeline.tokenizer
        return ChattingQwen(tokenizer, pipeline.text_encoder, Room.of(tokenizer, max_sequence_length))

    def load_text_encoders(self, config: TrainingConfig, device: torch.device) -> ChattingQwen:
        qwen = load_model(Qwen3ForCausalLM, config, "text_encoder", dtype=encoder_dtype(config))
        tokenizer = load_part(AutoTokenizer, config, "tokenizer")
        return ChattingQwen(tokenizer, freeze(qwen, device), Room.of(tokenizer, config.max_sequence_length))

    def latent_shape(self, pipeline: DiffusionPipeline) -> tuple[int, int, int]:
        fold = folding_side(pipeline.vae.config)
        side = int(pipeline.default_sample_size) // fold
        return int(pipeline.vae.config.latent_channels) * fold**2, side, side

    def build_editor(self, denoiser: ModelMixin, config: TrainingConfig, device: torch.device) -> DiffusionPipeline:
        texts = self.load_text_encoders(config, device)
        texts.tokenizer.model_max_length = texts.room.num_tokens
        return Flux2KleinPipeline(
            scheduler=self.noise.load_scheduler(config),
            vae=load_vae(config, device),
            text_encoder=texts.qwen,
            tokenizer=texts.tokenizer,
            transformer=denoiser,
            is_distilled=bool(model_index(config).get("is_distilled", False)),
        )

    def call_options(self, picture: Image.Image, instruction: str) -> dict[str, Any]:
        """Keeps the picture's size, which the pipeline would change if it is large."""
        width, height = picture.size
        return {"prompt": instruction, "image": picture, "width": width, "height": height}


def tokens_of(latents: Tensor) -> Tensor:
    """Lays (N, C, h, w) latents out as (N, h w, C) tokens."""
    return latents.flatten(2).mT


def places_of(height: int, width: int, *, time: int = 0, device: torch.device | None = None) -> Tensor:
    """Returns the (h w, 4) ids of tokens: time, row, column, and 0 for the place in a text."""
    ends = (time, time + 1), (0, height), (0, width), (0, 1)
    return torch.cartesian_prod(*(torch.arange(first, end, device=device) for first, end in ends))


def places_of_text(num_tokens: int, *, device: torch.device | None = None) -> Tensor:
    """Returns the (L, 4) ids of a text's tokens, of which only the last differ."""
    zero = torch.arange(1, device=device)
    return torch.cartesian_prod(zero, zero, zero, torch.arange(num_tokens, device=device))


ARCHITECTURE: Architecture = Flux2Klein()
