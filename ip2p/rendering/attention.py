"""Prompt-to-prompt on fused kernels: the edited side of a pair attends with the original's queries and keys.

An attention map depends on queries and keys alone, so taking both from the original is taking its map, exactly, while
each side keeps its own values; no map is ever made. Self-attention shares at every resolution, like the original's.
Cross-attention follows Hertz et al. (2022, section 3.2): an aligned token of the edited caption takes the map of its
token in the original, a new one keeps its own. It is linear in the maps, so it moves onto the values: two fused calls.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

_processors_lock = threading.RLock()
"""A UNet holds one set of processors, so threads that render with it take turns."""


@dataclass(frozen=True, slots=True)
class CrossSharing:
    """The K rows of a batch that take cross-attention maps of other rows, and for which tokens."""

    rows: Tensor
    """(K,) the rows that take."""
    sources: Tensor
    """(K,) the rows that they take from."""
    token_maps: Tensor
    """(K, original's tokens, edited tokens) as `alignment.TokenMap.matrix`."""
    own: Tensor
    """(K, edited tokens) as `alignment.TokenMap.own`."""


class SharedAttention:
    """What the installed processors read: whose queries and keys each row of the batch takes."""

    def __init__(self) -> None:
        self.source: Tensor | None = None
        """Self-attention: index of a row for each row of the batch; None where every row takes its own."""
        self.cross: CrossSharing | None = None
        """Cross-attention; None where every row takes its own."""


class SharedAttentionProcessor:
    """Scaled dot-product attention in which a row may take the query and key, so the map, of another row."""

    def __init__(self, shared: SharedAttention) -> None:
        self.shared = shared

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """(B, N, C) or (B, C, H, W) in and out, as diffusers' `AttnProcessor2_0`."""
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if residual.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        hidden_states = self._attend(attn, hidden_states, encoder_hidden_states, attention_mask)
        for layer in attn.to_out:  # projection, dropout
            hidden_states = layer(hidden_states)
        if residual.ndim == 4:
            hidden_states = hidden_states.transpose(1, 2).reshape(residual.shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        out: Tensor = hidden_states / attn.rescale_output_factor
        return out

    def _attend(self, attn: Attention, states: Tensor, texts: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        context = states if texts is None else texts
        if texts is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(texts)
        query, key, value = (
            layer(given).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, given in ((attn.to_q, states), (attn.to_k, context), (attn.to_v, context))
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        mask = _mask_of(attn, attention_mask, context)
        if texts is None:
            if self.shared.source is not None:
                query, key = query[self.shared.source], key[self.shared.source]
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attn.scale)
        else:
            attended = _attend_to_text(query, key, value, mask, attn.scale, self.shared.cross)
        return attended.transpose(1, 2).flatten(2).to(query.dtype)


def _attend_to_text(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, cross: CrossSharing | None
) -> Tensor:
    """Cross-attention with some tokens' maps taken from other rows: maps' columns are moved by moving the values."""
    if cross is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    taken = cross.token_maps.to(value.dtype)[:, None] @ value[cross.rows]
    own = value.index_copy(0, cross.rows, value[cross.rows] * cross.own.to(value.dtype)[:, None, :, None])
    attended = F.scaled_dot_product_attention(query, key, own, attn_mask=mask, scale=scale)
    source_mask = None if mask is None else mask[cross.sources]
    borrowed = F.scaled_dot_product_attention(
        query[cross.sources], key[cross.sources], taken, attn_mask=source_mask, scale=scale
    )
    return attended.index_add(0, cross.rows, borrowed)


def _mask_of(attn: Attention, attention_mask: Tensor | None, context: Tensor) -> Tensor | None:
    if attention_mask is None:
        return None
    size, length, _ = context.shape
    mask: Tensor = attn.prepare_attention_mask(attention_mask, length, size)
    return mask.view(size, attn.heads, -1, mask.shape[-1])


@contextmanager
def shared_attention(unet: nn.Module, *, cross: bool = False) -> Iterator[SharedAttention]:
    """Installs the processors on every self-attention of a UNet, with `cross` on every cross-attention too.

    Puts the old ones back at the end, also on error.
    """
    shared = SharedAttention()
    with _processors_lock:
        chosen = [*self_attentions(unet), *(cross_attentions(unet) if cross else ())]
        layers = [(layer, layer.processor) for layer in chosen]
        try:
            for layer, _ in layers:
                layer.set_processor(SharedAttentionProcessor(shared))
            yield shared
        finally:
            for layer, processor in layers:
                layer.set_processor(processor)


def self_attentions(unet: nn.Module) -> list[Any]:
    """The self-attention layers of a UNet (`attn1` of its transformer blocks)."""
    return [layer for layer in unet.modules() if isinstance(layer, Attention) and not layer.is_cross_attention]


def cross_attentions(unet: nn.Module) -> list[Any]:
    """The layers of a UNet that attend to the text (`attn2` of its transformer blocks)."""
    return [layer for layer in unet.modules() if isinstance(layer, Attention) and layer.is_cross_attention]
