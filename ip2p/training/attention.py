"""Chooses how attention is computed in training.

On a CPU, the gradient of torch's fused attention is slow in bfloat16: for 64 positions, explicit maps take a tenth of
its time, for 1,024 two thirds (`tests/benchmarks/attention.py`). In float32 the fused one is as fast or faster.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor

MOST_POSITIONS = 1024
"""Positions up to which explicit maps are used; beyond, they need much memory."""


class SmallMaps(AttnProcessor2_0):  # type: ignore[misc]
    """Computes explicit maps for few positions, and else calls torch's fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self._explicit = AttnProcessor()

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        """Returns what either processor of diffusers returns."""
        num_positions = hidden_states.shape[2:].numel() if hidden_states.ndim == 4 else hidden_states.shape[1]
        process = self._explicit if num_positions <= MOST_POSITIONS else super().__call__
        states: Tensor = process(attn, hidden_states, *args, **options)
        return states


def choose_attention(denoiser: ModelMixin, device: torch.device, precision: str) -> None:
    """Replaces diffusers' fused attention by `SmallMaps` where its gradient is slow."""
    if device.type == "cpu" and precision == "bf16" and hasattr(denoiser, "attn_processors"):
        processors = denoiser.attn_processors
        fused = [name for name, process in processors.items() if type(process) is AttnProcessor2_0]
        denoiser.set_attn_processor(processors | {name: SmallMaps() for name in fused})
