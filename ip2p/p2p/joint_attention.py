"""Shares attention between the sides of a pair in layers where image and text attend to both under one softmax.

The edited side takes the queries and keys of its original's *image* and keeps those of its text and all values, so that
the layout is the original's while each side reads its own words (compare Shin et al., 2025, "Exploring Multimodal
Diffusion Transformers for Enhanced Prompt-based Image Editing"). Maps of the text alone cannot be shared, since their
rows are normalised together with the image's. Where words are drawn is read by a fused call too: its values mark words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from ip2p.p2p.attention import SelfSharing, SharedAttention, split_heads


@dataclass(frozen=True, slots=True)
class JointAttention:
    """The processor of a joint layer, in which a row of the batch may take another row's image queries and keys.

    A layer has a stream for each of image and text, or one of both, which it then projects itself.
    """

    shared: SharedAttention
    text_first: bool
    is_watched: bool

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Maps (B, N, C) images and (B, L, C) texts, or (B, L + N, C) of both, to the same shapes."""
        has_streams = encoder_hidden_states is not None
        num_texts = self.shared.num_text_tokens if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        if encoder_hidden_states is None:
            texts, images = self._split(hidden_states, num_texts)
        else:
            texts, images = encoder_hidden_states, hidden_states
        query, key = (
            self._joined(self._shared(images, attn, name), _project(texts, attn, name, added=has_streams))
            for name in ("q", "k")
        )
        value = self._joined(_project(images, attn, "v"), _project(texts, attn, "v", added=has_streams))
        attended = self._attend(query, key, value, num_texts, attention_mask, image_rotary_emb)
        states = attended.to(hidden_states.dtype)
        if encoder_hidden_states is None:
            return states
        texts, images = self._split(states, num_texts)
        for layer in attn.to_out:  # projection, dropout
            images = layer(images)
        return images, texts if getattr(attn, "context_pre_only", False) else attn.to_add_out(texts)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        num_texts: int,
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Maps (B, heads, N, D) queries, keys and values of both to (B, N, heads D), and looks for watched words."""
        if rotary is not None:
            query, key = (apply_rotary_emb(states, rotary, sequence_dim=2) for states in (query, key))
        scale = float(query.shape[-1]) ** -0.5
        if self.is_watched:
            self._watch(query, key, num_texts, scale)
        return self.shared.kernel(query, key, value, mask, scale).transpose(1, 2).flatten(2)

    def _split(self, states: Tensor, num_texts: int, dim: int = 1) -> tuple[Tensor, Tensor]:
        """Cuts a sequence into its texts and its image."""
        num_images = states.shape[dim] - num_texts
        if self.text_first:
            return states.narrow(dim, 0, num_texts), states.narrow(dim, num_texts, num_images)
        return states.narrow(dim, num_images, num_texts), states.narrow(dim, 0, num_images)

    def _joined(self, images: Tensor, texts: Tensor) -> Tensor:
        return torch.cat([texts, images] if self.text_first else [images, texts], dim=2)

    def _shared(self, images: Tensor, attn: Any, name: str) -> Tensor:
        """Projects the image, or takes another row's projection."""
        itself = self._sharing(images.shape[1])
        if itself is None:
            return _project(images, attn, name)
        return _project(images[itself.distinct], attn, name)[itself.place]

    def _sharing(self, num_images: int) -> SelfSharing | None:
        """Returns whose image queries and keys the rows take; None for their own."""
        most = self.shared.max_positions
        return None if most is not None and num_images > most else self.shared.itself

    def _watch(self, query: Tensor, key: Tensor, num_texts: int, scale: float) -> None:
        """Sums up how the image attends to the watched words, by values that are the words' weights."""
        watched = self.shared.watched
        if watched is None:
            return
        rows, offset = watched.rows, self.shared.word_offset
        num_images = query.shape[2] - num_texts
        first_text, first_image = (0, num_texts) if self.text_first else (num_images, 0)
        start = first_text + offset
        marks = torch.zeros_like(key[rows])
        marks[:, :, start : start + watched.words.shape[1], 0] = watched.words[:, None].to(marks.dtype)
        image = query[rows, :, first_image : first_image + num_images]
        seen = self.shared.kernel(image, key[rows], marks, None, scale)[..., 0].float().mean(1)
        watched.seen[num_images] = watched.seen.get(num_images, 0) + seen


@dataclass(frozen=True, slots=True)
class ParallelAttention(JointAttention):
    """The processor of a joint layer of one stream that projects to its feed-forward part too (Dehghani et al., 2023).

    One projection gives queries, keys, values and what the feed-forward part takes, for all rows.
    """

    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Maps (B, L + N, C) of texts and images to the same shape."""
        projected, width, num_texts = attn.to_qkv_mlp_proj(hidden_states), attn.inner_dim, self.shared.num_text_tokens
        query, key, value = (split_heads(attn, part) for part in projected[..., : 3 * width].chunk(3, dim=-1))
        query, key = (self._taken(states, num_texts) for states in (attn.norm_q(query), attn.norm_k(key)))
        attended = self._attend(query, key, value, num_texts, attention_mask, image_rotary_emb)
        fed = attn.mlp_act_fn(projected[..., 3 * width :])
        states: Tensor = attn.to_out(torch.cat([attended.to(hidden_states.dtype), fed], dim=-1))
        return states

    def _taken(self, states: Tensor, num_texts: int) -> Tensor:
        """Gives each row the image part of the row that it takes from, in (B, heads, N, D) queries or keys."""
        texts, images = self._split(states, num_texts, dim=2)
        itself = self._sharing(images.shape[2])
        return states if itself is None else self._joined(images[itself.distinct[itself.place]], texts)


def joint_processor(layer: Any, shared: SharedAttention, *, text_first: bool, is_watched: bool) -> JointAttention:
    """Returns the processor that fits a joint layer."""
    kind = ParallelAttention if hasattr(layer, "to_qkv_mlp_proj") else JointAttention
    return kind(shared, text_first, is_watched)


def _project(states: Tensor, attn: Any, name: str, *, added: bool = False) -> Tensor:
    """Projects (B, N, C) to (B, heads, N, D) queries, keys or values, normalised as the layer says."""
    projection = getattr(attn, f"add_{name}_proj" if added else f"to_{name}")
    normalise = None if name == "v" else getattr(attn, f"norm_added_{name}" if added else f"norm_{name}")
    heads = split_heads(attn, projection(states))
    return heads if normalise is None else normalise(heads)
