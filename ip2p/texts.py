"""What a model's text encoders say of texts, for rendering, training and editing alike."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
