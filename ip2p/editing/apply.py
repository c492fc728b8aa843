"""Edits images in batches, equal sizes together. Results do not depend on the batch: each image has its generator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ip2p.models.architecture import Architecture, architecture_of, size_step
from ip2p.models.latents import LatentSpace, decode_images, encode_posterior
from ip2p.models.noise import draw_noise
from ip2p.models.texts import Texts, join_texts

Picture = Image.Image | NDArray[np.uint8]
Resample = Image.Resampling.LANCZOS
Scale = float | Sequence[float]


@torch.inference_mode()
def edit_images(
    pipeline: DiffusionPipeline,
    images: Sequence[Picture],
    instructions: Sequence[str],
    *,
    num_inference_steps: int = 20,
    guidance_scale: Scale = 7.5,
    image_guidance_scale: Scale = 1.5,
    seeds: Sequence[int],
    batch_size: int = 8,
    on_batch: Callable[[int], object] | None = None,
    on_step: Callable[[], object] | None = None,
) -> list[NDArray[np.uint8]]:
    """Returns the edited images (H, W, 3), each as large as its input. A scale is one for all, or one per image.

    `on_batch` gets each batch's size; `on_step` is called after each denoising step of a batch.
    """
    if not len(images) == len(instructions) == len(seeds):
        counts = f"{len(images)} images, {len(instructions)} instructions and {len(seeds)} seeds"
        raise ValueError(f"every edit takes an image, an instruction and a seed, got {counts}. Give as many of each.")
    base = architecture_of(pipeline)
    is_distilled = base.has_one_half(pipeline)
    device = base.denoiser(pipeline).device
    arrays = [_as_array(image) for image in images]
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, array in enumerate(arrays):
        groups[array.shape].append(index)
    edited: dict[int, NDArray[np.uint8]] = {}
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            indices = group[start : start + batch_size]
            batch = np.stack([arrays[index] for index in indices])
            fitted = _resize_all(batch, fitting_size(pipeline, batch.shape[2], batch.shape[1]))
            image = encode_images(pipeline, base, fitted)
            texts = base.encode(pipeline, ["", *(instructions[index] for index in indices)])
            scales = [_scales_at(scale, indices, device) for scale in (guidance_scale, image_guidance_scale)]
            terms = guidance_terms(*scales, is_distilled=is_distilled)
            conditions = stack_conditions(terms, image, texts, fitted.shape[1:3])
            chosen = [seeds[index] for index in indices]
            input_scale = scales[0] if is_distilled else None
            latents = denoise(
                pipeline, base, conditions, num_inference_steps, chosen, on_step, guidance_scale=input_scale
            )
            results = _resize_all(decode_images(pipeline.vae, latents), (batch.shape[2], batch.shape[1]))
            edited.update(zip(indices, results, strict=True))
            if on_batch is not None:
                on_batch(len(indices))
    return [edited[index] for index in range(len(arrays))]


def _scales_at(scale: Scale, indices: Sequence[int], device: torch.device) -> float | Tensor:
    """Returns the scale of a batch: a number if its images have the same, else (N, 1, 1, 1)."""
    if isinstance(scale, int | float):
        return scale
    chosen = [scale[index] for index in indices]
    if len(set(chosen)) == 1:
        return chosen[0]
    return torch.tensor(chosen, dtype=torch.float32, device=device).view(-1, 1, 1, 1)


def fitting_size(pipeline: DiffusionPipeline, width: int, height: int) -> tuple[int, int]:
    """Returns the nearest size that the autoencoder can halve and the denoiser can cut into patches."""
    factor = size_step(pipeline, architecture_of(pipeline))
    return max(factor, round(width / factor) * factor), max(factor, round(height / factor) * factor)


def encode_images(pipeline: DiffusionPipeline, base: Architecture, images: NDArray[np.uint8]) -> Tensor:
    """Encodes (N, H, W, 3) to the posterior's mode (N, C, h, w), normalised for a model that takes it so."""
    latents = encode_posteriors(pipeline, images)[0].to(base.denoiser(pipeline).dtype)
    return LatentSpace.of(pipeline.vae.config).scaled(latents) if base.condition_is_scaled(pipeline) else latents


def encode_posteriors(pipeline: DiffusionPipeline, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Encodes (N, H, W, 3) to the mean and the deviation of their latents, (N, C, h, w) in float32."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return encode_posterior(pipeline.vae, pixels.to(pipeline.vae.device, pipeline.vae.dtype))


def denoise(
    pipeline: DiffusionPipeline,
    base: Architecture,
    conditions: Conditions,
    num_steps: int,
    seeds: Sequence[int],
    on_step: Callable[[], object] | None = None,
    *,
    guidance_scale: float | Tensor | None = None,
) -> Tensor:
    """Samples float32 latents from noise; each image's chance comes from its own generator on the CPU.

    `guidance_scale` is told to a denoiser that takes it as an input.
    """
    denoiser = base.denoiser(pipeline)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    scheduler = base.noise.new_scheduler(pipeline.scheduler, None)
    shape = conditions.image.shape[1:]
    sampler = base.sampler(scheduler, num_steps, shape, denoiser.device, generators)
    latents = sampler.start(draw_noise(generators, shape, denoiser.device))
    for timestep, time_input in zip(sampler.timesteps, sampler.time_inputs, strict=True):

        def predict(inputs: Tensor, image: Tensor, texts: Texts, at: Tensor = time_input) -> Tensor:
            rows, sizes = inputs.to(denoiser.dtype), conditions.sizes
            guidance = _per_row(guidance_scale, rows)
            return base.predict(denoiser, rows, at, texts, condition=image, sizes=sizes, guidance=guidance).float()

        prediction = guided(predict, sampler.inputs(latents, timestep), conditions)
        latents = sampler.step(prediction, timestep, latents)
        if on_step is not None:
            on_step()
    return latents


def _per_row(scale: float | Tensor | None, rows: Tensor) -> Tensor | None:
    """Returns a scale per row; the rows repeat the batch once per term."""
    if scale is None or isinstance(scale, Tensor):
        return None if scale is None else scale.flatten().repeat(len(rows) // len(scale))
    return torch.full((len(rows),), scale, device=rows.device)


def _as_array(image: Picture) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"an image must be uint8 (H, W, 3), got {array.dtype} {array.shape}. Convert it to RGB first.")
    return array


def _resize_all(images: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if images.shape[2:0:-1] == size:
        return images
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Resample)) for image in images])


@dataclass(frozen=True, slots=True)
class Term:
    """One evaluation of the denoiser and its weight in the sum."""

    weight: float | Tensor
    """A number, or (N, 1, 1, 1) if the images of a batch have different scales."""
    with_image: bool
    with_text: bool


def guidance_terms(
    guidance_scale: float | Tensor, image_guidance_scale: float | Tensor, *, is_distilled: bool = False
) -> list[Term]:
    """Returns the one to three evaluations that the scales call for.

    The paper's equation 3, e(0,0) + s_I (e(I,0) - e(0,0)) + s_T (e(I,T) - e(I,0)), with its terms collected, so that
    those of weight zero are not computed. Unlike diffusers' pipeline it holds for every scale, below 1 too. A distilled
    denoiser is told s_T, so that the image's guidance remains: e(0,T) + s_I (e(I,T) - e(0,T)).
    """
    terms = [
        Term(guidance_scale, with_image=True, with_text=True),
        Term(image_guidance_scale - guidance_scale, with_image=True, with_text=False),
        Term(1 - image_guidance_scale, with_image=False, with_text=False),
    ]
    if is_distilled:
        terms = [
            Term(image_guidance_scale, with_image=True, with_text=True),
            Term(1 - image_guidance_scale, with_image=False, with_text=True),
        ]
    return [term for term in terms if torch.as_tensor(term.weight != 0).any()]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the edits of a batch are conditioned on, once per term, stacked."""

    terms: list[Term]
    image: Tensor
    """(terms * N, C, H, W)."""
    texts: Texts
    """(terms * N, …)."""
    sizes: Tensor
    """(6,) the images' height and width, the crop's top and left, height and width again."""


def stack_conditions(terms: list[Term], image: Tensor, texts: Texts, size: Sequence[int]) -> Conditions:
    """Repeats the conditions for each term. A missing image is zero.

    `texts` are no text and then those of the N images, `size` is the images' (height, width).
    """
    images = torch.cat([image if term.with_image else torch.zeros_like(image) for term in terms])
    none, present = texts.map(lambda values: values[:1].expand_as(values[1:])), texts.map(lambda values: values[1:])
    stacked = join_texts([present if term.with_text else none for term in terms])
    return Conditions(terms, images, stacked, torch.tensor([*size, 0, 0, *size], device=image.device))


def guided(predict: Callable[[Tensor, Tensor, Texts], Tensor], latents: Tensor, conditions: Conditions) -> Tensor:
    """Returns the weighted sum of the predictions. `predict` takes latents, the images to edit and the texts."""
    repeated = torch.cat([latents] * len(conditions.terms))
    predictions = predict(repeated, conditions.image, conditions.texts).chunk(len(conditions.terms))
    total = torch.zeros_like(latents)
    for term, prediction in zip(conditions.terms, predictions, strict=True):
        total += term.weight * prediction
    return total
