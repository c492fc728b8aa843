"""Weighs the positions of a sample in the loss: those where its pair changes against the rest.

A position whose share of changed pixels is m has the weight 1 + (r - 1) m, divided by its mean over the sample. So r is
how much a changed position counts against an unchanged one, and every sample counts as much as without weights. For
`log2`, r is 1 + log2(1 / mean m), as UniWorld-V1 weighs edits by their area (Lin et al., 2025).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ip2p.config import TrainingConfig
from ip2p.models.components import pixels_per_latent
from ip2p.training.decoding import Regions


def regions_of(config: TrainingConfig) -> Regions | None:
    """Returns where the config has pairs count as changed; None if all positions count alike."""
    if config.region_weight is None:
        return None
    return Regions(pixels_per_latent(config), config.region_threshold, config.mask_column is not None)


def position_weights(changed: Tensor, weight: float | Literal["log2"]) -> Tensor:
    """Returns (N, 1, h, w) weights of mean 1 for (N, 1, h, w) shares of changed pixels; all 1 if nothing changed."""
    area = changed.mean(dim=(1, 2, 3), keepdim=True)
    changed_weight = 1 - torch.log2(torch.where(area > 0, area, 1)) if weight == "log2" else float(weight)
    weights = 1 + (changed_weight - 1) * changed
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True)
