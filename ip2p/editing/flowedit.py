"""FlowEdit (Kulikov et al., ICCV 2025): leads a picture from its caption to another, without training and inversion.

The edit moves by the difference between two velocities, that towards the edited caption and that towards the original
one, both at pictures with the same noise. It holds for every base that is trained by flow matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from torch import Tensor

from ip2p.config import FlowEditConfig
from ip2p.editing.apply import encode_posteriors
from ip2p.editing.captioned import CaptionedDenoiser
from ip2p.models.architecture import architecture_of
from ip2p.models.latents import LatentSpace, decode_images, widen_if_it_overflows


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """From which caption to which one a picture is led."""

    source: str
    target: str
    guidance_scale: float
    """Guidance towards the target's caption."""
    strength: float
    """Share of the steps that are taken, the last ones: n_max over their number."""
    seed: int


@torch.inference_mode()
def lead_images(
    pipeline: DiffusionPipeline,
    images: NDArray[np.uint8],
    ways: Sequence[Way],
    settings: FlowEditConfig,
    num_steps: int,
    *,
    max_sequence_length: int | None = None,
) -> NDArray[np.uint8]:
    """Returns the edits of (N, H, W, 3) images, each along its own way and with its own noise."""
    widen_if_it_overflows(pipeline.vae)
    mean, _ = encode_posteriors(pipeline, images)
    originals = LatentSpace.of(pipeline.vae.config).scaled(mean)
    edited = lead_latents(pipeline, originals, ways, settings, num_steps, images.shape[1:3], max_sequence_length)
    return decode_images(pipeline.vae, edited)


def lead_latents(
    pipeline: DiffusionPipeline,
    originals: Tensor,
    ways: Sequence[Way],
    settings: FlowEditConfig,
    num_steps: int,
    size: Sequence[int],
    max_sequence_length: int | None = None,
) -> Tensor:
    """Returns the edits of (N, C, h, w) latents of images of a size (algorithm 1, and n_min of the appendix).

    A pair joins at the step where its share begins; in each step those that have joined are computed together.
    """
    num, base = len(ways), architecture_of(pipeline)
    denoiser = CaptionedDenoiser.of(
        pipeline,
        [*(way.source for way in ways), *(way.target for way in ways)],
        [settings.source_guidance_scale] * num + [way.guidance_scale for way in ways],
        size,
        max_sequence_length,
    )
    generators = [torch.Generator().manual_seed(way.seed) for way in ways]
    scheduler = base.noise.new_scheduler(pipeline.scheduler, None)
    timesteps = base.sampler(scheduler, num_steps, originals.shape[1:], originals.device, generators).time_inputs
    sigmas: Tensor = scheduler.sigmas.to(originals.device)
    num_led = [max(1, round(way.strength * num_steps)) for way in ways]
    num_alone = round(settings.n_min * num_steps)
    edited = originals.clone()
    for step, timestep in enumerate(timesteps):
        left, sigma = num_steps - step, sigmas[step]
        rows = torch.tensor([row for row in range(num) if num_led[row] >= left], dtype=torch.long)
        if not len(rows):
            continue
        own, moved, chances = originals[rows], edited[rows], [generators[row] for row in rows]
        velocity = torch.zeros_like(own)
        if left > num_alone:
            for _ in range(settings.n_avg):
                source = _noised(own, sigma, chances)
                both = torch.cat([source, moved + source - own])
                before, after = denoiser.predict(both, timestep, torch.cat([rows, rows + num])).chunk(2)
                velocity += (after - before) / settings.n_avg
        else:
            for place in (place for place, row in enumerate(rows) if left == min(num_alone, num_led[row])):
                moved[place] += _noised(own[place : place + 1], sigma, chances[place : place + 1])[0] - own[place]
            velocity = denoiser.predict(moved, timestep, rows + num)
        edited[rows] = moved + (sigmas[step + 1] - sigma) * velocity
    return edited


def _noised(latents: Tensor, sigma: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Mixes each row with noise of its own."""
    noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])
    return (1 - sigma) * latents + sigma * noise.to(latents)
