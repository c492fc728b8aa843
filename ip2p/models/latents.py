"""Normalises an autoencoder's latents, to which noise is then added, and decodes them to pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STABLE_DIFFUSIONS_SCALE = 0.18215
"""Autoencoders whose config gives no factor are those of Stable Diffusion 1.x."""


@dataclass(frozen=True, slots=True)
class LatentSpace:
    """The autoencoder's own normalisation, applied before noise is added and undone before decoding."""

    scale: float
    shift: float = 0.0
    mean: tuple[float, ...] | None = None
    """Per channel, as is `deviation`."""
    deviation: tuple[float, ...] | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LatentSpace:
        """Reads it from an autoencoder's config."""
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        scale, shift = config.get("scaling_factor", STABLE_DIFFUSIONS_SCALE), config.get("shift_factor") or 0.0
        if mean is None or deviation is None:
            return cls(float(scale), float(shift))
        return cls(float(scale), float(shift), tuple(mean), tuple(deviation))

    def scaled(self, latents: Tensor) -> Tensor:
        """Normalises (N, C, h, w) latents as they come from the encoder."""
        latents = latents - self.shift
        if self.mean is not None and self.deviation is not None:
            latents = (latents - _per_channel(latents, self.mean)) / _per_channel(latents, self.deviation)
        return latents * self.scale

    def unscaled(self, latents: Tensor) -> Tensor:
        """Undoes `scaled`."""
        latents = latents / self.scale
        if self.mean is not None and self.deviation is not None:
            latents = latents * _per_channel(latents, self.deviation) + _per_channel(latents, self.mean)
        return latents + self.shift


def _per_channel(latents: Tensor, values: tuple[float, ...]) -> Tensor:
    return latents.new_tensor(values).view(1, -1, 1, 1)


def decode_images(vae: Any, latents: Tensor) -> NDArray[np.uint8]:
    """Decodes normalised (N, C, h, w) latents to (N, H, W, 3) uint8, rounded to the nearest level."""
    unscaled = LatentSpace.of(vae.config).unscaled(latents)
    pixels = vae.decode(unscaled.to(vae.dtype), return_dict=False)[0].float()
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    images: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).cpu().numpy()
    return images
