"""What the UNet is told besides the latents: the captions' hidden states and, for XL, pooled texts and image sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from ip2p.config import CrossAlignment
from ip2p.records import Candidate
from ip2p.rendering.alignment import TokenMap, map_tokens, stack_maps
from ip2p.texts import hidden_states, none_and_texts_for_xl, tokenizer_lock


@dataclass(frozen=True, slots=True)
class Conditions:
    """Of the rows of a batch; the first two dimensions are (halves, rows), the half without text first."""

    texts: Tensor
    """(halves, rows, tokens, width)."""
    pooled: Tensor | None = None
    """(halves, rows, width) of Stable Diffusion XL's second text encoder."""
    sizes: Tensor | None = None
    """(6,) original height and width, crop's top and left, target height and width."""

    def of(self, rows: Tensor) -> dict[str, Any]:
        """The UNet's keyword arguments for some rows, the halves one after the other."""
        found: dict[str, Any] = {"encoder_hidden_states": self.texts[:, rows].flatten(0, 1)}
        if self.pooled is not None and self.sizes is not None:
            pooled = self.pooled[:, rows].flatten(0, 1)
            found["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": self.sizes.expand(len(pooled), -1)}
        return found


def tokenizers_of(pipeline: Any) -> list[Any]:
    """The model's tokenizers; Stable Diffusion XL has two, of one vocabulary."""
    names = ("tokenizer", "tokenizer_2")
    return [found for name in names if (found := getattr(pipeline, name, None)) is not None]


def fits_text_encoder(pipeline: Any, candidate: Candidate) -> bool:
    """Whether both captions, start and end included, fit each tokenizer's `model_max_length`."""
    texts = (candidate.triplet.original_prompt, candidate.triplet.edited_prompt)
    with tokenizer_lock:
        return all(
            len(tokenizer(text, truncation=False, verbose=False).input_ids) <= tokenizer.model_max_length
            for tokenizer in tokenizers_of(pipeline)
            for text in texts
        )


def encode_captions(pipeline: Any, batch: Sequence[Candidate], num_halves: int, size: tuple[int, int]) -> Conditions:
    """The conditions of [originals, edited] at an image size (height, width)."""
    originals = [candidate.triplet.original_prompt for candidate in batch]
    edited = [candidate.triplet.edited_prompt for candidate in batch]
    captions = [*originals, *edited]
    if isinstance(pipeline, StableDiffusionXLPipeline):
        return _encode_for_xl(pipeline, captions, num_halves, size)
    unguided = [""] * len(captions) if num_halves == 2 else []
    states = encode_texts(pipeline, [*unguided, *captions])
    return Conditions(states.view(num_halves, -1, *states.shape[1:]))


def encode_texts(pipeline: Any, texts: Sequence[str]) -> Tensor:
    """(N, tokens, width) hidden states; equal texts are encoded once."""
    unique = list(dict.fromkeys(texts))
    states = hidden_states(pipeline.text_encoder, pipeline.tokenizer, unique).to(pipeline.unet.dtype)
    return states[[unique.index(text) for text in texts]]


def _encode_for_xl(pipeline: Any, captions: Sequence[str], num_halves: int, size: tuple[int, int]) -> Conditions:
    """The half without text is what the model takes for none."""
    unique = [text for text in dict.fromkeys(captions) if text]
    states, pooled = none_and_texts_for_xl(pipeline, unique)
    places = torch.tensor([1 + unique.index(caption) if caption else 0 for caption in captions])
    halves = torch.stack([torch.zeros_like(places), places][2 - num_halves :])
    sizes = torch.tensor([*size, 0, 0, *size], device=pipeline.unet.device)
    return Conditions(states[halves], pooled[halves], sizes)


def align_captions(pipeline: Any, batch: Sequence[Candidate], alignment: CrossAlignment) -> TokenMap:
    """How each pair's captions are aligned."""
    triplets = [candidate.triplet for candidate in batch]
    with tokenizer_lock:
        maps = [
            map_tokens(pipeline.tokenizer, each.original_prompt, each.edited_prompt, alignment) for each in triplets
        ]
    return stack_maps(maps, pipeline.unet.device)
