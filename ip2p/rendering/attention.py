"""Prompt-to-prompt on fused kernels: the edited side of a pair attends with the original's queries and keys.

An attention map depends on queries and keys alone, so taking both from the original is taking its map, exactly, while
each side keeps its own values; no map is ever made. Self-attention only, at every resolution, as the original software.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

_processors_lock = threading.RLock()
"""A UNet holds one set of processors, so threads that render with it take turns."""


class SharedAttention:
    """What the installed processors read: whose queries and keys each row of the batch takes."""

    def __init__(self) -> None:
        self.source: Tensor | None = None
        """Index of a row for each row of the batch; None where every row takes its own."""


class SharedSelfAttentionProcessor:
    """Scaled dot-product self-attention in which row i takes query and key of row `source[i]`."""

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
        hidden_states = self._attend(attn, hidden_states, attention_mask)
        for layer in attn.to_out:  # projection, dropout
            hidden_states = layer(hidden_states)
        if residual.ndim == 4:
            hidden_states = hidden_states.transpose(1, 2).reshape(residual.shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        out: Tensor = hidden_states / attn.rescale_output_factor
        return out

    def _attend(self, attn: Attention, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if self.shared.source is not None:
            query, key = query[self.shared.source], key[self.shared.source]
        mask = _mask_of(attn, attention_mask, hidden_states)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attn.scale)
        return attended.transpose(1, 2).flatten(2).to(query.dtype)


def _mask_of(attn: Attention, attention_mask: Tensor | None, hidden_states: Tensor) -> Tensor | None:
    if attention_mask is None:
        return None
    size, length, _ = hidden_states.shape
    mask: Tensor = attn.prepare_attention_mask(attention_mask, length, size)
    return mask.view(size, attn.heads, -1, mask.shape[-1])


@contextmanager
def shared_self_attention(unet: nn.Module) -> Iterator[SharedAttention]:
    """Installs the processors on every self-attention of a UNet; puts the old ones back at the end, also on error."""
    shared = SharedAttention()
    with _processors_lock:
        layers = [(layer, layer.processor) for layer in self_attentions(unet)]
        try:
            for layer, _ in layers:
                layer.set_processor(SharedSelfAttentionProcessor(shared))
            yield shared
        finally:
            for layer, processor in layers:
                layer.set_processor(processor)


def self_attentions(unet: nn.Module) -> list[Any]:
    """The self-attention layers of a UNet (`attn1` of its transformer blocks)."""
    return [layer for layer in unet.modules() if isinstance(layer, Attention) and not layer.is_cross_attention]
