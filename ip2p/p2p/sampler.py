"""Renders many independent pairs at once, each with its own seed, guidance and share of prompt-to-prompt.

Both sides of a pair start from the same noise and get the same ancestral noise, from a CPU generator with the pair's
seed. So a pair does not depend on its batch, and two equal prompts give two equal images. No step waits for the device:
what it shares is planned before the first, and noise is copied while the device is at work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ip2p.config import RenderingConfig
from ip2p.images import Array
from ip2p.models.architecture import Architecture, architecture_of, architectures, latent_step, size_step
from ip2p.models.latents import decode_images, widen_if_it_overflows
from ip2p.models.noise import draw_noise
from ip2p.models.texts import TextEncoders, Texts, tokenizer_lock
from ip2p.p2p.attention import choose_kernel, sdpa
from ip2p.p2p.installing import shared_attention
from ip2p.p2p.steps import WordSharing, blend, plan_steps
from ip2p.records import Candidate, RenderSpec


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """Two (H, W, 3) uint8 images."""

    original: Array
    edited: Array


def render_pairs(
    pipeline: DiffusionPipeline, candidates: Sequence[Candidate], config: RenderingConfig
) -> Iterator[RenderedPair]:
    """Yields a pair per candidate, in order; renders `config.batch_size` at a time."""
    check_renderable(pipeline, config)
    for start in range(0, len(candidates), config.batch_size):
        batch = candidates[start : start + config.batch_size]
        with torch.inference_mode():
            originals, edited = sample_latents(pipeline, batch, config).chunk(2)
            images = decode_latents(pipeline, originals), decode_latents(pipeline, edited)
        for original_image, edited_image in zip(*images, strict=True):
            yield RenderedPair(original_image, edited_image)


def check_renderable(pipeline: DiffusionPipeline, config: RenderingConfig) -> None:
    """Raises ValueError for a model, a scheduler or a size that cannot be rendered with."""
    bases = architectures()
    if not any(isinstance(pipeline, base.text_to_image) for base in bases):
        titles = ", ".join(base.title for base in bases)
        raise ValueError(
            f"rendering.model is a {type(pipeline).__name__}, expected a text-to-image pipeline. Give one of: {titles}."
        )
    base = architecture_of(pipeline)
    base.check_rendering(config)
    base.noise.new_scheduler(pipeline.scheduler, config.scheduler)
    latent_shape(pipeline, config)


def latent_shape(pipeline: DiffusionPipeline, config: RenderingConfig) -> tuple[int, int, int]:
    """Returns (C, h, w) of the latents. ValueError for a size that the model cannot divide."""
    base, factor = architecture_of(pipeline), latent_step(pipeline)
    channels, height, width = base.latent_shape(pipeline)
    for name, pixels in (("height", config.height), ("width", config.width)):
        if pixels is not None and pixels % (step := size_step(pipeline, base)):
            raise ValueError(f"rendering.{name} must be a multiple of {step} for this model, got {pixels}.")
    height = config.height // factor if config.height else height
    width = config.width // factor if config.width else width
    return channels, height, width


def sample_latents(pipeline: DiffusionPipeline, batch: Sequence[Candidate], config: RenderingConfig) -> Tensor:
    """Returns (2 N, C, h, w) float32 latents: the originals, then their edited sides."""
    base = architecture_of(pipeline)
    denoiser = base.denoiser(pipeline)
    device, dtype = denoiser.device, denoiser.dtype
    specs = [candidate.spec for candidate in batch]
    scale = torch.tensor([max(1.0, spec.guidance_scale) for spec in specs] * 2, device=device).view(-1, 1, 1, 1)
    is_distilled = base.has_one_half(pipeline)
    num_halves = 2 if not is_distilled and any(is_guided(spec) for spec in specs) else 1
    captions = encode_captions(pipeline, base, batch, num_halves, config.max_sequence_length)
    shape = latent_shape(pipeline, config)
    height, width = (side * latent_step(pipeline) for side in shape[1:])
    sizes = torch.tensor([height, width, 0, 0, height, width], device=device)
    generators = [torch.Generator().manual_seed(spec.seed) for spec in specs] * 2
    scheduler = base.noise.new_scheduler(pipeline.scheduler, config.scheduler)
    sampler = base.sampler(scheduler, config.num_inference_steps, shape, device, generators)
    latents = sampler.start(draw_noise(generators, shape, device))
    plans = plan_steps(specs, len(sampler.timesteps), num_halves=num_halves, device=device)
    kernel = choose_kernel(config.attention_backend, device, dtype)
    words = WordSharing.of(base.text_encoders(pipeline, config.max_sequence_length), batch, config, device)
    layers = base.attention_layers(denoiser)
    with shared_attention(layers, cross=words is not None or kernel is not sdpa, kernel=kernel) as shared:
        shared.max_positions = config.p2p_max_positions
        shared.num_text_tokens = captions.hidden.shape[2]
        shared.word_offset = 0 if words is None else words.offset
        for plan, timestep, time_input in zip(plans, sampler.timesteps, sampler.time_inputs, strict=True):
            shared.itself = plan.itself
            if words is not None:
                words.before_step(plan, shared)
            rows = sampler.inputs(latents, timestep)[plan.computed].repeat(num_halves, 1, 1, 1).to(dtype)
            texts = _texts_of(captions, plan.computed)
            guidance = scale[plan.computed].flatten() if is_distilled else None
            predicted = base.predict(denoiser, rows, time_input, texts, sizes=sizes, guidance=guidance).float()
            guided = _guided(predicted, scale[plan.computed], num_halves)[plan.result_of]
            latents = sampler.step(guided, timestep, latents)
            if words is not None and shared.watched is not None:
                words.places.add(shared.watched)
            if plan.is_blended is not None:
                places = None if words is None or config.blend_by_difference else words.places
                latents = blend(latents, plan.is_blended, places, config.blend_threshold)
    return latents


def is_guided(spec: RenderSpec) -> bool:
    """Returns True if a pair needs the unconditional half, which a batch computes for all of its pairs or for none."""
    return spec.guidance_scale > 1


def _texts_of(texts: Texts, rows: Tensor) -> Texts:
    """Returns the texts of some rows, the halves one after the other."""
    return texts.map(lambda values: values[:, rows].flatten(0, 1))


def _guided(predicted: Tensor, scale: Tensor, num_halves: int) -> Tensor:
    """Applies classifier-free guidance, one scale per row; a batch of one half is its prediction."""
    if num_halves == 1:
        return predicted
    unconditional, conditional = predicted.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def decode_latents(pipeline: DiffusionPipeline, latents: Tensor) -> Array:
    """Decodes (N, C, h, w) latents to (N, H, W, 3) uint8, in float32 if the autoencoder overflows in float16."""
    widen_if_it_overflows(pipeline.vae)
    return decode_images(pipeline.vae, latents)


def fits_encoders(encoders: TextEncoders, candidate: Candidate) -> bool:
    """Returns True if both captions, start and end tokens included, are read whole."""
    texts = (candidate.triplet.original_prompt, candidate.triplet.edited_prompt)
    with tokenizer_lock:
        return all(
            len(tokenizer(text, truncation=False, verbose=False).input_ids) <= length
            for tokenizer, length in zip(encoders.tokenizers, encoders.lengths, strict=True)
            for text in texts
        )


def encode_captions(
    pipeline: DiffusionPipeline,
    base: Architecture,
    batch: Sequence[Candidate],
    num_halves: int,
    max_sequence_length: int | None = None,
) -> Texts:
    """Encodes the captions of [originals, edited] as (halves, 2 N, …), the half without text first."""
    captions = [candidate.triplet.original_prompt for candidate in batch]
    captions += [candidate.triplet.edited_prompt for candidate in batch]
    unguided = [""] * len(captions) if num_halves == 2 else []
    texts = encode_texts(pipeline, base, [*unguided, *captions], max_sequence_length)
    return texts.map(lambda values: values.view(num_halves, -1, *values.shape[1:]))


def encode_texts(
    pipeline: DiffusionPipeline, base: Architecture, texts: Sequence[str], max_sequence_length: int | None = None
) -> Texts:
    """Encodes N texts in the denoiser's precision; equal ones are encoded once."""
    unique = list(dict.fromkeys(texts))
    places = [unique.index(text) for text in texts]
    return base.encode(pipeline, unique, max_sequence_length).map(lambda values: values[places])
