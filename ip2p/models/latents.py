"""Encodes pictures, normalises an autoencoder's latents, to which noise is then added, and decodes them to pictures.

An autoencoder that keeps running statistics (FLUX.2's) has squares of its latents folded into channels, which those
statistics normalise. It happens as pictures are encoded and is undone as they are decoded, so that everything between
sees latents that need no further normalisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

CPU_PIXELS, GPU_PIXELS = 64 * 64**2, 32 * 256**2
"""Pixels that an autoencoder takes at once; a CPU gains nothing from more, which only take memory."""
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
        """Reads it from an autoencoder's config. Folded latents come normalised."""
        if folding_side(config) > 1:
            return cls(1.0)
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        scale, shift = config.get("scaling_factor", STABLE_DIFFUSIONS_SCALE), config.get("shift_factor") or 0.0
        if mean is None or deviation is None:
            return cls(float(scale), float(shift))
        return cls(float(scale), float(shift), tuple(mean), tuple(deviation))

    def scaled(self, latents: Tensor) -> Tensor:
        """Normalises (N, C, h, w) latents as they come from the encoder."""
        latents = latents - self.shift
        if self.mean is not None and self.deviation is not None:
            latents = (latents - _per_channel(self.mean, latents)) / _per_channel(self.deviation, latents)
        return latents * self.scale

    def unscaled(self, latents: Tensor) -> Tensor:
        """Undoes `scaled`."""
        latents = latents / self.scale
        if self.mean is not None and self.deviation is not None:
            latents = latents * _per_channel(self.deviation, latents) + _per_channel(self.mean, latents)
        return latents + self.shift


def _per_channel(values: tuple[float, ...], latents: Tensor) -> Tensor:
    """Returns (1, C, 1, 1) values beside the latents, copied without a wait for what the device does."""
    return torch.tensor(values, dtype=latents.dtype).view(1, -1, 1, 1).to(latents.device, non_blocking=True)


def folding_side(config: Mapping[str, Any]) -> int:
    """Returns the side of the squares of latents that are folded into channels; 1 if an autoencoder folds none."""
    sides = config.get("patch_size") or (1,)
    return int(sides[0])


def downsampling(config: Mapping[str, Any]) -> int:
    """Returns the side in pixels of the square that an unfolded place of an autoencoder's latents stands for."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


@dataclass(frozen=True, slots=True)
class Folding:
    """Squares of latents as channels, normalised by an autoencoder's running statistics."""

    side: int
    mean: Tensor
    """(1, C, 1, 1), as is `deviation`."""
    deviation: Tensor

    @classmethod
    def of(cls, vae: Any) -> Self | None:
        """Reads it off an autoencoder; None if it folds nothing."""
        side = folding_side(vae.config)
        if side == 1:
            return None
        mean, variance = (values.float().view(1, -1, 1, 1) for values in (vae.bn.running_mean, vae.bn.running_var))
        return cls(side, mean, torch.sqrt(variance + vae.config.batch_norm_eps))

    def fold(self, latents: Tensor) -> Tensor:
        """Folds (N, c, H, W) latents to (N, C, h, w), the rows of a square after one another."""
        return F.pixel_unshuffle(latents, self.side)

    def decoded_form(self, latents: Tensor) -> Tensor:
        """Undoes normalisation and folding."""
        return F.pixel_shuffle(latents * self.deviation + self.mean, self.side)


def encode_posterior(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Encodes (N, 3, H, W) pixels in [-1, 1] to the mean, which is the mode, and deviation of latents, in float32."""
    posterior = vae.encode(pixels).latent_dist
    mean, deviation = posterior.mean.float(), posterior.std.float()
    if (folding := Folding.of(vae)) is None:
        return mean, deviation
    return (folding.fold(mean) - folding.mean) / folding.deviation, folding.fold(deviation) / folding.deviation


def widen_if_it_overflows(vae: Any) -> None:
    """Brings an autoencoder to float32 if it is in float16 and its config says that it overflows there."""
    if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
        vae.to(torch.float32)


def pictures_at_once(vae: Any, num_pixels: int) -> int:
    """Returns how many pictures of so many pixels an autoencoder takes at once on its device, at least one."""
    return max(1, (CPU_PIXELS if vae.device.type == "cpu" else GPU_PIXELS) // num_pixels)


def decode_images(vae: Any, latents: Tensor) -> NDArray[np.uint8]:
    """Decodes normalised (N, C, h, w) latents to (N, H, W, 3) uint8, rounded to the nearest level."""
    unscaled = LatentSpace.of(vae.config).unscaled(latents)
    if (folding := Folding.of(vae)) is not None:
        unscaled = folding.decoded_form(unscaled)
    num_pixels = downsampling(vae.config) ** 2 * unscaled.shape[2] * unscaled.shape[3]
    parts = torch.split(unscaled.to(vae.dtype), pictures_at_once(vae, num_pixels))
    return np.concatenate([_levels(vae.decode(part, return_dict=False)[0].float()) for part in parts])


def _levels(pixels: Tensor) -> NDArray[np.uint8]:
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    images: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).cpu().numpy()
    return images
