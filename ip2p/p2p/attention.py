"""Shares attention between the sides of a pair (prompt-to-prompt) on fused kernels, without making attention maps.

A map depends on queries and keys alone, so taking both from the original is taking its map, exactly, while each side
keeps its own values. Self-attention shares at every resolution, like the original software. Cross-attention follows
Hertz et al. (2022, section 3.2): an aligned token of the edited caption takes the map of its token in the original, a
new one keeps its own, and either may be weighted. All of this is linear in the maps, so it moves onto the values: two
fused calls. Only local blend computes maps, of a few words at low resolutions. The kernels are torch's or xformers'.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from ip2p.config import AttentionBackend
from ip2p.console import first_line

logger = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""(query, key, value, additive mask, scale), each (B, heads, N, D), to (B, heads, N, D)."""


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Runs torch's scaled dot-product attention."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def xformers(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Runs xformers' memory-efficient attention, which takes (B, N, heads, D)."""
    from xformers.ops import memory_efficient_attention

    query, key, value = (states.transpose(1, 2).contiguous() for states in (query, key, value))
    if mask is not None:
        mask = mask.expand(query.shape[0], query.shape[2], query.shape[1], key.shape[1]).to(query.dtype)
    attended: Tensor = memory_efficient_attention(query, key, value, attn_bias=mask, scale=scale)
    return attended.transpose(1, 2)


def choose_kernel(backend: AttentionBackend, device: torch.device, dtype: torch.dtype) -> Kernel:
    """Returns the kernel of a backend; torch's, with one log line, if xformers is asked for and cannot run."""
    if backend != "xformers":
        return sdpa
    return xformers if _xformers_runs(device.type, dtype) else sdpa


@cache
def _xformers_runs(device: str, dtype: torch.dtype) -> bool:
    """Tries it on a few numbers, once per process; logs why it fails."""
    try:
        sample = torch.zeros(1, 1, 16, 16, device=device, dtype=dtype)
        xformers(sample, sample, sample, None, 1.0)
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = first_line(error)
        logger.warning("xformers cannot attend on %s in %s, torch's kernel is used: %s", device, dtype, reason)
        return False
    return True


@dataclass(frozen=True, slots=True)
class SelfSharing:
    """Whose queries and keys each row of a batch takes in self-attention."""

    distinct: Tensor
    """(D,) the rows whose queries and keys are taken; those of other rows are not computed."""
    place: Tensor
    """(B,) for each row the place of its source among `distinct`."""


@dataclass(frozen=True, slots=True)
class CrossSharing:
    """The K rows of a batch that take cross-attention maps of other rows, and for which tokens."""

    rows: Tensor
    """(K,) the rows that take."""
    sources: Tensor
    """(K,) the rows that they take from."""
    token_maps: Tensor
    """(K, original's tokens, edited tokens), `matrix` of `alignment.TokenMap`."""
    own: Tensor
    """(K, edited tokens), `own` of `alignment.TokenMap`."""


@dataclass(frozen=True, slots=True)
class Emphasis:
    """The K rows of a batch whose cross-attention maps are weighted by token (Hertz et al., re-weighting)."""

    rows: Tensor
    """(K,)."""
    factors: Tensor
    """(K, tokens)."""


@dataclass(slots=True)
class WatchedWords:
    """Sums up how the positions of K rows attend to given words, over the heads and layers of a resolution."""

    rows: Tensor
    """(K,) rows of the batch."""
    words: Tensor
    """(K, tokens): the weight of each token's map."""
    slots: Tensor
    """(K,) the row of `PlacesOfWords` under which it is summed."""
    max_positions: int
    """Layers with more positions are not watched: their maps would be large."""
    seen: dict[int, Tensor] = field(default_factory=dict)
    """By number of positions, (K, positions) float32: the sum over layers of the mean over heads."""

    def look(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> None:
        """Takes the (B, heads, N, D) queries and keys of a layer."""
        positions = query.shape[2]
        if positions > self.max_positions:
            return
        logits = (query[self.rows] @ key[self.rows].mT).float() * scale
        if mask is not None:
            logits = logits + mask[self.rows]
        maps = torch.einsum("khnl,kl->kn", logits.softmax(-1), self.words) / query.shape[1]
        self.seen[positions] = self.seen.get(positions, 0) + maps


class SharedAttention:
    """Attention in which a row of the batch may take the query and key, so the map, of another row.

    One object is the processor of all layers; its fields are set for each step.
    """

    def __init__(self, kernel: Kernel = sdpa) -> None:
        self.kernel = kernel
        self.itself: SelfSharing | None = None
        """None if every row takes its own."""
        self.max_positions: int | None = None
        """Self-attention is shared in layers with at most this many positions; None for all layers."""
        self.cross: CrossSharing | None = None
        """None if every row takes its own."""
        self.emphasis: Emphasis | None = None
        self.watched: WatchedWords | None = None
        self.num_text_tokens = 0
        """Of a text's states, for layers that take text and image in one sequence."""
        self.word_offset = 0
        """The place of the first watched token among them."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Maps (B, N, C) or (B, C, H, W) to the same shape, as diffusers' `AttnProcessor2_0`."""
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if residual.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        texts = encoder_hidden_states
        if texts is not None and attn.norm_cross:
            texts = attn.norm_encoder_hidden_states(texts)
        mask = _mask_of(attn, attention_mask, hidden_states if texts is None else texts)
        if texts is None:
            attended = self.attend_to_itself(attn, hidden_states, mask)
        else:
            attended = self.attend_to_text(attn, hidden_states, texts, mask)
        hidden_states = attended.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        for layer in attn.to_out:  # projection, dropout
            hidden_states = layer(hidden_states)
        if residual.ndim == 4:
            hidden_states = hidden_states.transpose(1, 2).reshape(residual.shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        out: Tensor = hidden_states / attn.rescale_output_factor
        return out

    def attend_to_itself(self, attn: Attention, states: Tensor, mask: Tensor | None) -> Tensor:
        """Maps (B, N, C) to (B, heads, N, D)."""
        shared = self.itself
        if shared is None or (self.max_positions is not None and states.shape[1] > self.max_positions):
            return self.kernel(*_projected(attn, states, states), mask, attn.scale)
        givers = states[shared.distinct]
        query, key = _query(attn, givers)[shared.place], _key(attn, givers)[shared.place]
        return self.kernel(query, key, split_heads(attn, attn.to_v(states)), mask, attn.scale)

    def attend_to_text(self, attn: Attention, states: Tensor, texts: Tensor, mask: Tensor | None) -> Tensor:
        """Maps (B, N, C) and (B, L, C') to (B, heads, N, D); columns of maps are moved by moving the values."""
        query, key, value = _projected(attn, states, texts)
        scale, cross = attn.scale, self.cross
        if self.watched is not None:
            self.watched.look(query, key, mask, scale)
        if self.emphasis is not None:
            rows, factors = self.emphasis.rows, self.emphasis.factors.to(value.dtype)
            value = value.index_copy(0, rows, value[rows] * factors[:, None, :, None])
        if cross is None:
            return self.kernel(query, key, value, mask, scale)
        taken = cross.token_maps.to(value.dtype)[:, None] @ value[cross.rows]
        own = value.index_copy(0, cross.rows, value[cross.rows] * cross.own.to(value.dtype)[:, None, :, None])
        source_mask = None if mask is None else mask[cross.sources]
        borrowed = self.kernel(query[cross.sources], key[cross.sources], taken, source_mask, scale)
        return self.kernel(query, key, own, mask, scale).index_add(0, cross.rows, borrowed)


def _projected(attn: Attention, states: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _query(attn, states), _key(attn, context), split_heads(attn, attn.to_v(context))


def _query(attn: Attention, states: Tensor) -> Tensor:
    query = split_heads(attn, attn.to_q(states))
    return query if attn.norm_q is None else attn.norm_q(query)


def _key(attn: Attention, context: Tensor) -> Tensor:
    key = split_heads(attn, attn.to_k(context))
    return key if attn.norm_k is None else attn.norm_k(key)


def split_heads(attn: Any, states: Tensor) -> Tensor:
    """Splits (B, N, C) into (B, heads, N, D)."""
    heads: Tensor = states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
    return heads


def _mask_of(attn: Attention, attention_mask: Tensor | None, context: Tensor) -> Tensor | None:
    if attention_mask is None:
        return None
    size, length, _ = context.shape
    mask: Tensor = attn.prepare_attention_mask(attention_mask, length, size)
    return mask.view(size, attn.heads, -1, mask.shape[-1])
