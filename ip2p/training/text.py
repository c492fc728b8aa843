"""What a base's text encoders say of an instruction, and of none.

Stable Diffusion 1.x and 2.x take the last hidden states of one encoder; XL the last but one of two, side by side, and
the second's pooled embedding. No instruction is what the base's own pipeline uses where there is none: the empty one,
or zeros where an XL says `force_zeros_for_empty_prompt`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from ip2p.config import TrainingConfig
from ip2p.texts import hidden_states
from ip2p.training import components


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
