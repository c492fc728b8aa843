"""What a model's text encoders say of texts, for rendering, training and editing alike."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from ip2p.config import TrainingConfig
from ip2p.models import components

tokenizer_lock = threading.Lock()
"""Fast tokenizers hold their padding and truncation, so threads that share one take turns."""


def hidden_states(encoder: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """(N, L, D) last hidden states, L being the tokenizer's own context length; longer texts are cut."""
    options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    with tokenizer_lock:
        tokens = tokenizer(list(texts), return_tensors="pt", **options)
    mask = tokens.attention_mask.to(encoder.device) if getattr(encoder.config, "use_attention_mask", False) else None
    states: Tensor = encoder(tokens.input_ids.to(encoder.device), attention_mask=mask)[0]
    return states


def none_and_texts_for_xl(pipeline: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(1 + N, L, D) hidden states and (1 + N, P) pooled ones of a Stable Diffusion XL: of no text, then of each.

    By the pipeline's own `encode_prompt`; no text is zeros where the model wants that.
    """
    unet = pipeline.unet
    with tokenizer_lock:
        states, _, pooled, _ = pipeline.encode_prompt(
            ["", *texts], device=unet.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    if pipeline.config.force_zeros_for_empty_prompt:
        states, pooled = (torch.cat([torch.zeros_like(each[:1]), each[1:]]) for each in (states, pooled))
    return states.to(unet.dtype), pooled.to(unet.dtype)


@dataclass(frozen=True, slots=True)
class Texts:
    """Embeddings of some instructions."""

    hidden: Tensor
    """(N, L, D)."""
    pooled: Tensor | None = None
    """(N, P), of a Stable Diffusion XL."""


class TextEncoders:
    """A base's text encoders with their tokenizers."""

    def __init__(self, config: TrainingConfig, device: torch.device) -> None:
        self.is_xl = components.is_xl(config)
        self.tokenizer = components.load_tokenizer(config)
        self.encoder = components.load_text_encoder(config, device)
        self.second: tuple[CLIPTokenizer, CLIPTextModelWithProjection] | None = None
        if self.is_xl:
            second = components.load_tokenizer(config, "tokenizer_2")
            self.second = second, components.load_second_text_encoder(config, device)
        self.zeros_for_none = self.is_xl and components.model_index(config).get("force_zeros_for_empty_prompt", True)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Texts:
        """Of instructions; longer ones than the tokenizer's context are cut."""
        if self.second is None:
            return Texts(hidden_states(self.encoder, self.tokenizer, prompts))
        first = self.encoder(_tokens(self.tokenizer, prompts).to(self.encoder.device), output_hidden_states=True)
        tokenizer, encoder = self.second
        other = encoder(_tokens(tokenizer, prompts).to(encoder.device), output_hidden_states=True)
        return Texts(torch.cat([first.hidden_states[-2], other.hidden_states[-2]], dim=-1), other.text_embeds)

    def none(self) -> Texts:
        """Of no instruction; (1, …)."""
        empty = self.encode([""])
        if not self.zeros_for_none:
            return empty
        return Texts(empty.hidden * 0, None if empty.pooled is None else empty.pooled * 0)


def _tokens(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    ids: Tensor = tokenizer(prompts, **options, return_tensors="pt").input_ids
    return ids
