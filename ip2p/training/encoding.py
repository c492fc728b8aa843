"""Encodes decoded pairs with the autoencoder, to the columns that a cache keeps and a batch has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor

from ip2p.config import TrainingConfig
from ip2p.models.components import load_vae
from ip2p.models.latents import encode_posterior
from ip2p.training.decoding import DecodedPair

ROW_COLUMNS = ("mean", "deviation", "condition", "time_ids")
"""The columns of a part on disk; the last are the sizes of `Batch`."""
CHANGED = "changed"
"""The column of a cache for a loss that is weighted by regions."""


def encode_views(vae: AutoencoderKL, pairs: Sequence[DecodedPair], config: TrainingConfig) -> dict[str, Tensor]:
    """Encodes pairs as they are and, for `random_flip`, mirrored; each column is (N, views, …)."""
    columns: defaultdict[str, list[Tensor]] = defaultdict(list)
    for view in [pairs, [pair.mirrored() for pair in pairs]] if config.random_flip else [pairs]:
        values = (*encode_pairs(vae, np.stack([pair.pixels for pair in view])), sizes_of(view, config))
        for name, value in zip(ROW_COLUMNS, values, strict=True):
            columns[name].append(value)
        if (changed := changed_of(view)) is not None:
            columns[CHANGED].append(changed)
    return {name: torch.stack(views, 1).cpu() for name, views in columns.items()}


def changed_of(pairs: Sequence[DecodedPair]) -> Tensor | None:
    """Returns (N, 1, h, w) shares of the pairs' changed pixels; None if they were not asked for."""
    maps = [pair.changed for pair in pairs if pair.changed is not None]
    return torch.from_numpy(np.stack(maps))[:, None] if maps else None


def sizes_of(pairs: Sequence[DecodedPair], config: TrainingConfig) -> Tensor:
    """Returns (N, 6) sizes and crops: each pair's own, or those that the config gives all."""
    top, left = config.crops_coords_top_left_h, config.crops_coords_top_left_w
    if top is None and left is None:
        return torch.tensor([pair.time_ids() for pair in pairs])
    return torch.tensor([(*pair.crop, top or 0, left or 0, *pair.crop) for pair in pairs])


def load_encoder(config: TrainingConfig, device: torch.device) -> AutoencoderKL:
    """Loads the autoencoder, frozen, in the precision in which it encodes pairs."""
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return load_vae(config, device, dtypes[config.vae_precision])


def autocast_of_step(accelerator: Accelerator) -> torch.autocast:
    """Computes in the training's bfloat16 what a step encodes. In float16 the autoencoder of XL overflows."""
    is_on = accelerator.mixed_precision == "bf16"
    return torch.autocast(accelerator.device.type, torch.bfloat16, enabled=is_on)


def encode_pairs(vae: AutoencoderKL, images: np.ndarray | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Encodes (N, 2, H, W, 3) uint8 to the edited images' mean and deviation and the originals' mode, in float32."""
    pixels = torch.as_tensor(images).to(vae.device, non_blocking=True).permute(1, 0, 4, 2, 3).to(vae.dtype) / 127.5 - 1
    mean, deviation = encode_posterior(vae, pixels[1])
    return mean, deviation, encode_posterior(vae, pixels[0])[0]
