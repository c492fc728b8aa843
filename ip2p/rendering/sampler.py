"""Renders many independent pairs at once, each with its own seed, guidance and share of prompt-to-prompt.

Both sides of a pair start from the same noise and draw the same ancestral noise, each from a generator of its own with
the pair's seed on the CPU. So a pair does not depend on its batch, and two equal prompts give two equal images.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Generator, Tensor

from ip2p.config import RenderingConfig
from ip2p.records import Candidate, RenderSpec
from ip2p.rendering.attention import shared_attention
from ip2p.rendering.conditions import encode_captions
from ip2p.rendering.images import Array
from ip2p.rendering.kernels import choose_kernel, sdpa
from ip2p.rendering.schedulers import new_scheduler
from ip2p.rendering.steps import plan_step
from ip2p.rendering.words import WordSharing


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """Two (H, W, 3) uint8 images."""

    original: Array
    edited: Array


def render_pairs(pipeline: Any, candidates: Sequence[Candidate], config: RenderingConfig) -> Iterator[RenderedPair]:
    """Yields a pair per candidate, in order; renders `config.batch_size` at a time."""
    check_renderable(pipeline, config)
    for start in range(0, len(candidates), config.batch_size):
        batch = candidates[start : start + config.batch_size]
        with torch.inference_mode():
            originals, edited = sample_latents(pipeline, batch, config).chunk(2)
            images = decode_latents(pipeline, originals), decode_latents(pipeline, edited)
        for original_image, edited_image in zip(*images, strict=True):
            yield RenderedPair(original_image, edited_image)


def check_renderable(pipeline: Any, config: RenderingConfig) -> None:
    """Raises ValueError for a model, a scheduler or a size that cannot be rendered with."""
    if not isinstance(pipeline, StableDiffusionPipeline | StableDiffusionXLPipeline):
        kind = type(pipeline).__name__
        raise ValueError(
            f"rendering.model is a {kind}, expected a StableDiffusionPipeline or a StableDiffusionXLPipeline. "
            "Give a Stable Diffusion 1.x, 2.x or XL."
        )
    new_scheduler(pipeline, config.scheduler)
    latent_size(pipeline, config)


def latent_size(pipeline: Any, config: RenderingConfig) -> tuple[int, int]:
    """(height, width) of the latents."""
    factor, own = pipeline.vae_scale_factor, pipeline.unet.config.sample_size
    own_height, own_width = (own, own) if isinstance(own, int) else own
    for name, pixels in (("height", config.height), ("width", config.width)):
        if pixels is not None and pixels % factor:
            raise ValueError(f"rendering.{name} must be a multiple of {factor} for this model, got {pixels}.")
    height = config.height // factor if config.height else own_height
    width = config.width // factor if config.width else own_width
    return height, width


def sample_latents(pipeline: Any, batch: Sequence[Candidate], config: RenderingConfig) -> Tensor:
    """(2 N, C, h, w) float32 latents, the originals first, then their edited sides."""
    scheduler, unet = new_scheduler(pipeline, config.scheduler), pipeline.unet
    scheduler.set_timesteps(config.num_inference_steps, device=unet.device)
    specs = [candidate.spec for candidate in batch]
    scale = _guidance_scales(specs).to(unet.device)
    num_halves = 2 if any(is_guided(spec) for spec in specs) else 1
    size, factor = latent_size(pipeline, config), pipeline.vae_scale_factor
    conditions = encode_captions(pipeline, batch, num_halves, (size[0] * factor, size[1] * factor))
    generators = [torch.Generator().manual_seed(candidate.spec.seed) for _ in range(2) for candidate in batch]
    latents: Tensor = _initial_noise(generators, (unet.config.in_channels, *size))
    latents = latents.to(unet.device) * float(scheduler.init_noise_sigma)
    options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    kernel = choose_kernel(config.attention_backend, unet.device, unet.dtype)
    words = WordSharing.of(pipeline, batch, config)
    with shared_attention(unet, cross=words is not None or kernel is not sdpa, kernel=kernel) as shared:
        shared.max_positions = config.p2p_max_positions
        for step, timestep in enumerate(scheduler.timesteps):
            plan = plan_step(specs, step, len(scheduler.timesteps), num_halves=num_halves).to(unet.device)
            shared.itself = plan.itself
            if words is not None:
                words.before_step(plan, shared)
            rows = scheduler.scale_model_input(latents, timestep)[plan.computed].repeat(num_halves, 1, 1, 1)
            predicted = unet(rows.to(unet.dtype), timestep, **conditions.of(plan.computed)).sample.float()
            guided = _guided(predicted, scale[plan.computed], num_halves)[plan.result_of]
            latents = scheduler.step(guided, timestep, latents, **options).prev_sample
            if words is not None:
                latents = words.after_step(plan, shared, latents)
    return latents


def is_guided(spec: RenderSpec) -> bool:
    """Whether a pair needs the unconditional half, which a batch computes for all of its pairs if one needs it."""
    return spec.guidance_scale > 1


def _guidance_scales(specs: Sequence[RenderSpec]) -> Tensor:
    """(2 N, 1, 1, 1); a scale under 1 means no guidance, which is a scale of 1."""
    scales = [max(1.0, spec.guidance_scale) for spec in specs]
    return torch.tensor(scales * 2).view(-1, 1, 1, 1)


def _initial_noise(generators: Sequence[Generator], shape: tuple[int, ...]) -> Tensor:
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def _guided(predicted: Tensor, scale: Tensor, num_halves: int) -> Tensor:
    """Classifier-free guidance, one scale per row; without an unconditional half the prediction itself."""
    if num_halves == 1:
        return predicted
    unconditional, conditional = predicted.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def decode_latents(pipeline: Any, latents: Tensor) -> Array:
    """(N, C, h, w) latents to (N, H, W, 3) uint8, rounded to the nearest level."""
    vae, config = pipeline.vae, pipeline.vae.config
    if vae.dtype == torch.float16 and getattr(config, "force_upcast", False):
        vae.to(torch.float32)  # Stable Diffusion XL's overflows in float16
    latents = latents / config.scaling_factor
    if getattr(config, "latents_mean", None) is not None:
        mean, deviation = (
            latents.new_tensor(each).view(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std)
        )
        latents = latents * deviation + mean
    shift = getattr(config, "shift_factor", None) or 0.0
    pixels = vae.decode((latents + shift).to(vae.dtype)).sample.float()
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    array: Array = levels.permute(0, 2, 3, 1).cpu().numpy()
    return array
