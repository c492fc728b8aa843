"""What the UNet is told besides the latents: the captions' hidden states and, for XL, pooled texts and image sizes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from ip2p.config import CrossAlignment
from ip2p.records import Candidate
from ip2p.rendering.alignment import TokenMap, map_tokens, stack_maps

_tokenizer_lock = threading.Lock()
"""Fast tokenizers hold their padding and truncation, so threads that share one take turns."""


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
    with _tokenizer_lock:
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
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    with _tokenizer_lock:
        tokens = tokenizer(unique, return_tensors="pt", **options)
    mask = tokens.attention_mask.to(encoder.device) if getattr(encoder.config, "use_attention_mask", False) else None
    states: Tensor = encoder(tokens.input_ids.to(encoder.device), attention_mask=mask)[0].to(pipeline.unet.dtype)
    return states[[unique.index(text) for text in texts]]


def _encode_for_xl(pipeline: Any, captions: Sequence[str], num_halves: int, size: tuple[int, int]) -> Conditions:
    """By the pipeline's own `encode_prompt`; the half without text is zeros where the model wants that."""
    unique = list(dict.fromkeys(["", *captions]))
    unet = pipeline.unet
    with _tokenizer_lock:
        states, _, pooled, _ = pipeline.encode_prompt(
            unique, device=unet.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    if pipeline.config.force_zeros_for_empty_prompt:
        states, pooled = (torch.cat([torch.zeros_like(each[:1]), each[1:]]) for each in (states, pooled))
    places = torch.tensor([unique.index(caption) for caption in captions])
    halves = torch.stack([torch.zeros_like(places), places][2 - num_halves :])
    sizes = torch.tensor([*size, 0, 0, *size], device=unet.device)
    return Conditions(states.to(unet.dtype)[halves], pooled.to(unet.dtype)[halves], sizes)


def align_captions(pipeline: Any, batch: Sequence[Candidate], alignment: CrossAlignment) -> TokenMap:
    """How each pair's captions are aligned."""
    triplets = [candidate.triplet for candidate in batch]
    with _tokenizer_lock:
        maps = [
            map_tokens(pipeline.tokenizer, each.original_prompt, each.edited_prompt, alignment) for each in triplets
        ]
    return stack_maps(maps, pipeline.unet.device)
