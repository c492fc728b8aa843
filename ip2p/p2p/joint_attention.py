"""Shares attention between the sides of a pair in layers where image and text attend to both under one softmax.

The edited side takes the queries and keys of its original's *image* and keeps those of its text and all values, so that
the layout is the original's while each side reads its own words (compare Shin et al., 2025, "Exploring Multimodal
Diffusion Transformers for Enhanced Prompt-based Image Editing"). Maps of the text alone cannot be shared, since their
rows are normalised together with the image's. Where words are drawn is read by a fused call too: its values mark words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from ip2p.p2p.attention import SharedAttention, split_heads

Projection = Callable[[Tensor], Tensor]


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
        if image_rotary_emb is not None:
            query, key = (apply_rotary_emb(states, image_rotary_emb, sequence_dim=2) for states in (query, key))
        scale = float(query.shape[-1]) ** -0.5
        if self.is_watched:
            self._watch(query, key, num_texts, scale)
        attended = self.shared.kernel(query, key, value, attention_mask, scale)
        states = attended.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        if encoder_hidden_states is None:
            return states
        texts, images = self._split(states, num_texts)
        for layer in attn.to_out:  # projection, dropout
            images = layer(images)
        return images, texts if getattr(attn, "context_pre_only", False) else attn.to_add_out(texts)

    def _split(self, states: Tensor, num_texts: int) -> tuple[Tensor, Tensor]:
        """Cuts a sequence into its texts and its image."""
        if self.text_first:
            return states[:, :num_texts], states[:, num_texts:]
        num_images = states.shape[1] - num_texts
        return states[:, num_images:], states[:, :num_images]

    def _joined(self, images: Tensor, texts: Tensor) -> Tensor:
        return torch.cat([texts, images] if self.text_first else [images, texts], dim=2)

    def _shared(self, images: Tensor, attn: Any, name: str) -> Tensor:
        """Projects the image, or takes another row's projection."""
        itself, most = self.shared.itself, self.shared.max_positions
        if itself is None or (most is not None and images.shape[1] > most):
            return _project(images, attn, name)
        return _project(images[itself.distinct], attn, name)[itself.place]

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


def _project(states: Tensor, attn: Any, name: str, *, added: bool = False) -> Tensor:
    """Projects (B, N, C) to (B, heads, N, D) queries, keys or values, normalised as the layer says."""
    projection = getattr(attn, f"add_{name}_proj" if added else f"to_{name}")
    normalise = None if name == "v" else getattr(attn, f"norm_added_{name}" if added else f"norm_{name}")
    heads = split_heads(attn, projection(states))
    return heads if normalise is None else normalise(heads)
