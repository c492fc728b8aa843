"""Encodes texts, for rendering, training and editing alike."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

tokenizer_lock = threading.Lock()
"""Fast tokenizers hold their padding and truncation, so threads that share one take turns."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Embeddings of N texts."""

    hidden: Tensor
    """(N, L, D) states per token."""
    pooled: Tensor | None = None
    """(N, P) one state per text; None if the denoiser takes none."""
    mask: Tensor | None = None
    """(N, L) 1 at the tokens that are attended to, else 0; None if all are."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Texts:
        """Applies a function to every tensor."""
        further = (None if value is None else change(value) for value in (self.pooled, self.mask))
        return Texts(change(self.hidden), *further)

    def replaced(self, rows: Tensor, by: Texts) -> Texts:
        """Puts `by`, one text or N, in the place of the rows that `rows`, (N,) bool, marks."""
        pairs = (self.pooled, by.pooled), (self.mask, by.mask)
        further = (own if own is None or new is None else _replaced(own, rows, new) for own, new in pairs)
        return Texts(_replaced(self.hidden, rows, by.hidden), *further)


def _replaced(values: Tensor, rows: Tensor, by: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *(1 for _ in values.shape[1:])), by.to(values.dtype), values)


def join_texts(parts: Sequence[Texts]) -> Texts:
    """Concatenates texts along their first dimension."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    masks = [part.mask for part in parts if part.mask is not None]
    further = (torch.cat(column) if column else None for column in (pooled, masks))
    return Texts(torch.cat([part.hidden for part in parts]), *further)


class TextEncoders(Protocol):
    """A model's text encoders with their tokenizers."""

    @property
    def tokenizers(self) -> Sequence[PreTrainedTokenizerBase]:
        """The tokenizers that must read a text whole; word-level sharing uses the first."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """The tokens that each of them reads."""
        ...

    @property
    def offset(self) -> int:
        """The place of the first tokenizer's first token among a text's states."""
        ...

    def encode(self, texts: Sequence[str]) -> Texts:
        """Encodes texts, cut to the tokenizer's length. The empty text is what the model takes for no text."""
        ...


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int | None = None) -> BatchEncoding:
    """Returns token ids and mask, padded and cut to a length; by default the tokenizer's own."""
    length = max_length or tokenizer.model_max_length
    with tokenizer_lock:
        tokens: BatchEncoding = tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
    return tokens


def tokens_read(tokenizer: PreTrainedTokenizerBase, given: int | None, most: int) -> int:
    """Returns how many tokens are read: those that are given, else as many as the tokenizer takes, up to `most`."""
    return min(most, tokenizer.model_max_length) if given is None else given


def hidden_states(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """Returns a CLIP tower's (N, L, D) last hidden states."""
    tokens = tokenize(tokenizer, texts)
    mask = tokens.attention_mask.to(encoder.device) if getattr(encoder.config, "use_attention_mask", False) else None
    states: Tensor = encoder(tokens.input_ids.to(encoder.device), attention_mask=mask)[0]
    return states


def t5_states(
    encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], num_tokens: int
) -> Tensor:
    """Returns a T5's (N, num_tokens, D) states, those of the padding included, as diffusers' pipelines read them."""
    if not num_tokens:
        return torch.zeros(len(texts), 0, encoder.config.d_model, device=encoder.device)
    states: Tensor = encoder(tokenize(tokenizer, texts, num_tokens).input_ids.to(encoder.device))[0]
    return states
