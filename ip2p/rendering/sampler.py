"""Renders many independent pairs at once, each with its own seed, guidance and share of prompt-to-prompt.

Both sides of a pair start from the same noise and draw the same ancestral noise, each from a generator of its own with
the pair's seed on the CPU. So a pair does not depend on its batch, and two equal prompts give two equal images.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionPipeline
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from torch import Generator, Tensor

from ip2p.config import CrossAlignment, RenderingConfig
from ip2p.records import Candidate, RenderSpec
from ip2p.rendering.alignment import TokenMap, map_tokens, stack_maps
from ip2p.rendering.attention import shared_attention
from ip2p.rendering.images import Array
from ip2p.rendering.steps import plan_step

logger = logging.getLogger(__name__)
_tokenizer_lock = threading.Lock()
"""Fast tokenizers hold their padding and truncation, so threads that share one take turns."""

UNPAIRED_SCHEDULERS = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
"""These draw noise from generators of their own, which two sides of a pair cannot share."""


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
    if not isinstance(pipeline, StableDiffusionPipeline):
        kind = type(pipeline).__name__
        raise ValueError(
            f"rendering.model is a {kind}, expected a StableDiffusionPipeline. Give a Stable Diffusion 1.x or 2.x."
        )
    new_scheduler(pipeline, config.scheduler)
    latent_size(pipeline, config)


def new_scheduler(pipeline: Any, name: str | None) -> Any:
    """A fresh scheduler (they hold state) on the model's noise schedule; the model's own class where `name` is None."""
    own = pipeline.scheduler
    if name is None:
        return type(own).from_config(own.config)
    scheduler_class: Any = getattr(diffusers, name, None)
    if not _can_render_pairs(scheduler_class):
        known = ", ".join(usable_schedulers(pipeline))
        raise ValueError(f"rendering.scheduler {name} cannot render pairs with this model. Use one of {known}.")
    _warn_of_lost_schedule(own, scheduler_class)
    return scheduler_class.from_config(own.config)


def usable_schedulers(pipeline: Any) -> list[str]:
    """Names of the schedulers that can render pairs: the model's own, and those that diffusers lets it change to."""
    known = {type(pipeline.scheduler), *(getattr(diffusers, kind.name) for kind in KarrasDiffusionSchedulers)}
    return sorted(found.__name__ for found in known if _can_render_pairs(found))


def _can_render_pairs(scheduler_class: Any) -> bool:
    if not inspect.isclass(scheduler_class) or not issubclass(scheduler_class, SchedulerMixin):
        return False
    return scheduler_class.__name__ not in UNPAIRED_SCHEDULERS and _understands(scheduler_class, "beta_schedule")


def _understands(scheduler_class: Any, option: str) -> bool:
    return option in inspect.signature(scheduler_class).parameters


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _warn_of_lost_schedule(own: Any, scheduler_class: Any) -> None:
    for option in ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing"):
        value = own.config.get(option)
        if value not in (None, False, "epsilon", "leading") and not _understands(scheduler_class, option):
            _warn_once(f"{scheduler_class.__name__} has no {option}, which this model was trained for ({value})")


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


def num_tokens(pipeline: Any, text: str) -> int:
    """Tokens of a text, start and end included, before any truncation."""
    with _tokenizer_lock:
        return len(pipeline.tokenizer(text, truncation=False, verbose=False).input_ids)


def fits_text_encoder(pipeline: Any, candidate: Candidate) -> bool:
    """Whether both captions fit the tokenizer's `model_max_length`."""
    texts = (candidate.triplet.original_prompt, candidate.triplet.edited_prompt)
    limit: int = pipeline.tokenizer.model_max_length
    return all(num_tokens(pipeline, text) <= limit for text in texts)


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


def sample_latents(pipeline: Any, batch: Sequence[Candidate], config: RenderingConfig) -> Tensor:
    """(2 N, C, h, w) float32 latents, the originals first, then their edited sides."""
    scheduler, unet = new_scheduler(pipeline, config.scheduler), pipeline.unet
    scheduler.set_timesteps(config.num_inference_steps, device=unet.device)
    specs = [candidate.spec for candidate in batch]
    scale = _guidance_scales(specs).to(unet.device)
    num_halves = 2 if any(is_guided(spec) for spec in specs) else 1
    texts = _conditions(pipeline, batch, num_halves)
    generators = [torch.Generator().manual_seed(candidate.spec.seed) for _ in range(2) for candidate in batch]
    latents: Tensor = _initial_noise(generators, (unet.config.in_channels, *latent_size(pipeline, config)))
    latents = latents.to(unet.device) * float(scheduler.init_noise_sigma)
    options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    token_maps = _token_maps(pipeline, batch, config.cross_alignment)
    with shared_attention(unet, cross=token_maps is not None) as shared:
        for step, timestep in enumerate(scheduler.timesteps):
            plan = plan_step(specs, step, len(scheduler.timesteps), num_halves=num_halves).to(unet.device)
            shared.source = plan.attention_source
            shared.cross = plan.cross_sharing(token_maps, num_halves=num_halves) if token_maps else None
            rows = scheduler.scale_model_input(latents, timestep)[plan.computed].repeat(num_halves, 1, 1, 1)
            states = texts[:, plan.computed].flatten(0, 1)
            predicted = unet(rows.to(unet.dtype), timestep, encoder_hidden_states=states).sample.float()
            guided = _guided(predicted, scale[plan.computed], num_halves)[plan.result_of]
            latents = scheduler.step(guided, timestep, latents, **options).prev_sample
    return latents


def is_guided(spec: RenderSpec) -> bool:
    """Whether a pair needs the unconditional half, which a batch computes for all of its pairs if one needs it."""
    return spec.guidance_scale > 1


def _guidance_scales(specs: Sequence[RenderSpec]) -> Tensor:
    """(2 N, 1, 1, 1); a scale under 1 means no guidance, which is a scale of 1."""
    scales = [max(1.0, spec.guidance_scale) for spec in specs]
    return torch.tensor(scales * 2).view(-1, 1, 1, 1)


def _conditions(pipeline: Any, batch: Sequence[Candidate], num_halves: int) -> Tensor:
    """(halves, 2 N, tokens, width): the empty text first where there are two halves."""
    originals = [candidate.triplet.original_prompt for candidate in batch]
    edited = [candidate.triplet.edited_prompt for candidate in batch]
    unconditional = [""] * (2 * len(batch)) if num_halves == 2 else []
    states = encode_texts(pipeline, [*unconditional, *originals, *edited])
    return states.view(num_halves, -1, *states.shape[1:])


def _token_maps(pipeline: Any, batch: Sequence[Candidate], alignment: CrossAlignment) -> TokenMap | None:
    """How each pair's captions are aligned; None where no pair shares cross-attention."""
    if not any(candidate.spec.cross_p2p > 0 for candidate in batch):
        return None
    triplets = [candidate.triplet for candidate in batch]
    with _tokenizer_lock:
        maps = [
            map_tokens(pipeline.tokenizer, each.original_prompt, each.edited_prompt, alignment) for each in triplets
        ]
    return stack_maps(maps, pipeline.unet.device)


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
    vae = pipeline.vae
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    pixels = vae.decode((latents / vae.config.scaling_factor + shift).to(vae.dtype)).sample.float()
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    array: Array = levels.permute(0, 2, 3, 1).cpu().numpy()
    return array
