"""Renders many independent pairs at once, each with its own seed, guidance and share of prompt-to-prompt.

Both sides of a pair start from the same noise and draw the same ancestral noise, each from a generator of its own with
the pair's seed on the CPU. So a pair does not depend on its batch, and two equal prompts give two equal images.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from torch import Generator, Tensor

from ip2p.config import RenderingConfig
from ip2p.images import Array
from ip2p.models.texts import hidden_states, none_and_texts_for_xl, tokenizer_lock
from ip2p.p2p.alignment import tokenizers_of
from ip2p.p2p.attention import choose_kernel, sdpa, shared_attention
from ip2p.p2p.steps import WordSharing, plan_step
from ip2p.records import Candidate, RenderSpec


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


@dataclass(frozen=True, slots=True)
class Conditions:
    """Of the rows of a batch; the first two dimensions are (halves, rows), the half without text first."""

    texts: Tensor
    """(halves, rows, tokens, width)."""
    pooled: Tensor | None = None
    """(halves, rows, width) of Stable Diffusion XL's second text encoder."""
    sizes: Tensor | None = None
    """(6,) original height and width, crop's top and left, target height and width."""

    def of(self, rows: Tensor) -> dict[str, Any]:
        """The UNet's keyword arguments for some rows, the halves one after the other."""
        found: dict[str, Any] = {"encoder_hidden_states": self.texts[:, rows].flatten(0, 1)}
        if self.pooled is not None and self.sizes is not None:
            pooled = self.pooled[:, rows].flatten(0, 1)
            found["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": self.sizes.expand(len(pooled), -1)}
        return found


def fits_text_encoder(pipeline: Any, candidate: Candidate) -> bool:
    """Whether both captions, start and end included, fit each tokenizer's `model_max_length`."""
    texts = (candidate.triplet.original_prompt, candidate.triplet.edited_prompt)
    with tokenizer_lock:
        return all(
            len(tokenizer(text, truncation=False, verbose=False).input_ids) <= tokenizer.model_max_length
            for tokenizer in tokenizers_of(pipeline)
            for text in texts
        )


def encode_captions(pipeline: Any, batch: Sequence[Candidate], num_halves: int, size: tuple[int, int]) -> Conditions:
    """The conditions of [originals, edited] at an image size (height, width)."""
    originals = [candidate.triplet.original_prompt for candidate in batch]
    edited = [candidate.triplet.edited_prompt for candidate in batch]
    captions = [*originals, *edited]
    if isinstance(pipeline, StableDiffusionXLPipeline):
        return _encode_for_xl(pipeline, captions, num_halves, size)
    unguided = [""] * len(captions) if num_halves == 2 else []
    states = encode_texts(pipeline, [*unguided, *captions])
    return Conditions(states.view(num_halves, -1, *states.shape[1:]))


def encode_texts(pipeline: Any, texts: Sequence[str]) -> Tensor:
    """(N, tokens, width) hidden states; equal texts are encoded once."""
    unique = list(dict.fromkeys(texts))
    states = hidden_states(pipeline.text_encoder, pipeline.tokenizer, unique).to(pipeline.unet.dtype)
    return states[[unique.index(text) for text in texts]]


def _encode_for_xl(pipeline: Any, captions: Sequence[str], num_halves: int, size: tuple[int, int]) -> Conditions:
    """The half without text is what the model takes for none."""
    unique = [text for text in dict.fromkeys(captions) if text]
    states, pooled = none_and_texts_for_xl(pipeline, unique)
    places = torch.tensor([1 + unique.index(caption) if caption else 0 for caption in captions])
    halves = torch.stack([torch.zeros_like(places), places][2 - num_halves :])
    sizes = torch.tensor([*size, 0, 0, *size], device=pipeline.unet.device)
    return Conditions(states[halves], pooled[halves], sizes)


logger = logging.getLogger(__name__)

UNPAIRED_SCHEDULERS = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
"""These draw noise from generators of their own, which two sides of a pair cannot share."""


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
