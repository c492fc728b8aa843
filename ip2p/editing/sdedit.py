"""SDEdit (Meng et al., 2021): noises pictures in part, and draws them again towards a caption.

It needs no training, and preserves the less the more it changes. Each picture has a share of the noise and a scheduler
of its own, so that all are computed together and each is drawn as diffusers' own pipeline draws it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from torch import Generator, Tensor

from ip2p.editing.apply import encode_posteriors
from ip2p.editing.captioned import CaptionedDenoiser
from ip2p.models.latents import LatentSpace, decode_images, widen_if_it_overflows


@dataclass(frozen=True, slots=True, kw_only=True)
class Redrawing:
    """Towards what a picture is drawn again, and how much of it."""

    caption: str
    guidance_scale: float
    strength: float
    """Share of the noise, and of the steps; at least one is taken."""
    seed: int


@torch.inference_mode()
def redraw_images(
    pipeline: DiffusionPipeline,
    images: NDArray[np.uint8],
    redrawings: Sequence[Redrawing],
    num_steps: int,
    *,
    scheduler: str | None = None,
    max_sequence_length: int | None = None,
) -> NDArray[np.uint8]:
    """Returns (N, H, W, 3) images drawn again; `scheduler` names one of diffusers, by default the model's own."""
    widen_if_it_overflows(pipeline.vae)
    captions, scales = [each.caption for each in redrawings], [each.guidance_scale for each in redrawings]
    denoiser = CaptionedDenoiser.of(pipeline, captions, scales, images.shape[1:3], max_sequence_length)
    generators = [Generator().manual_seed(each.seed) for each in redrawings]
    mean, deviation = encode_posteriors(pipeline, images)
    clean = LatentSpace.of(pipeline.vae.config).scaled(mean + deviation * _noise_like(mean, generators))
    noise = _noise_like(clean, generators)
    samplers = [
        denoiser.base.sampler(
            denoiser.base.noise.new_scheduler(pipeline.scheduler, scheduler),
            num_steps,
            clean.shape[1:],
            clean.device,
            [generator],
        )
        for generator in generators
    ]
    latents, firsts = list(torch.split(clean, 1)), []
    for row, (sampler, each) in enumerate(zip(samplers, redrawings, strict=True)):
        latents[row], first = sampler.start_from(latents[row], noise[row : row + 1], each.strength)
        firsts.append(first)
    for step, (timestep, time_input) in enumerate(zip(samplers[0].timesteps, samplers[0].time_inputs, strict=True)):
        rows = [row for row, first in enumerate(firsts) if first <= step]
        if not rows:
            continue
        inputs = torch.cat([samplers[row].inputs(latents[row], timestep) for row in rows])
        predictions = torch.split(denoiser.predict(inputs, time_input, torch.tensor(rows)), 1)
        for row, prediction in zip(rows, predictions, strict=True):
            latents[row] = samplers[row].step(prediction, timestep, latents[row])
    return decode_images(pipeline.vae, torch.cat(latents))


def _noise_like(latents: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Draws each row's noise from its own generator."""
    return torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators]).to(latents)
