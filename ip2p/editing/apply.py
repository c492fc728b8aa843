"""Edits images in batches whose make-up does not matter: one generator per image, equal sizes together."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ip2p.models.texts import hidden_states, none_and_texts_for_xl

Picture = Image.Image | NDArray[np.uint8]
Resample = Image.Resampling.LANCZOS


@torch.inference_mode()
def edit_images(
    pipeline: Any,
    images: Sequence[Picture],
    instructions: Sequence[str],
    *,
    num_inference_steps: int = 20,
    guidance_scale: float = 7.5,
    image_guidance_scale: float = 1.5,
    seeds: Sequence[int],
    batch_size: int = 8,
    on_batch: Callable[[int], Any] | None = None,
) -> list[NDArray[np.uint8]]:
    """The edited images (H, W, 3), each as large as its input. `on_batch` hears how many images a batch had."""
    if not len(images) == len(instructions) == len(seeds):
        counts = f"{len(images)} images, {len(instructions)} instructions and {len(seeds)} seeds"
        raise ValueError(f"every edit takes an image, an instruction and a seed, got {counts}. Give as many of each.")
    arrays = [_as_array(image) for image in images]
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, array in enumerate(arrays):
        groups[array.shape].append(index)
    edited: dict[int, NDArray[np.uint8]] = {}
    for group in groups.values():
        for some in (group[start : start + batch_size] for start in range(0, len(group), batch_size)):
            batch = np.stack([arrays[index] for index in some])
            terms = guidance_terms(guidance_scale, image_guidance_scale)
            fitted = _resize_all(batch, fitting_size(pipeline, batch.shape[2], batch.shape[1]))
            image, texts = (
                encode_images(pipeline, fitted),
                encode_text(pipeline, [instructions[index] for index in some]),
            )
            conditions = stack_conditions(terms, image, texts, fitted.shape[1:3])
            latents = denoise(pipeline, conditions, num_inference_steps, [seeds[index] for index in some])
            results = _resize_all(decode_latents(pipeline, latents), (batch.shape[2], batch.shape[1]))
            edited.update(zip(some, results, strict=True))
            if on_batch is not None:
                on_batch(len(some))
    return [edited[index] for index in range(len(arrays))]


def fitting_size(pipeline: Any, width: int, height: int) -> tuple[int, int]:
    """The nearest size that the autoencoder can halve as often as it does."""
    factor = pipeline.vae_scale_factor
    return max(factor, round(width / factor) * factor), max(factor, round(height / factor) * factor)


def encode_text(pipeline: Any, prompts: list[str]) -> Texts:
    """Of the instructions, and of none as the pipeline has it."""
    if hasattr(pipeline, "text_encoder_2"):
        states, pooled = none_and_texts_for_xl(pipeline, prompts)
        return Texts(states[1:], states[:1], pooled[1:], pooled[:1])
    hidden = hidden_states(pipeline.text_encoder, pipeline.tokenizer, ["", *prompts]).to(pipeline.unet.dtype)
    return Texts(hidden[1:], hidden[:1])


def encode_images(pipeline: Any, images: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) to the posterior's mode (N, C, h, w), scaled for a model of CosXL's convention alone."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents: Tensor = pipeline.vae.encode(pixels.to(pipeline.vae.device, pipeline.vae.dtype)).latent_dist.mode()
    scale = pipeline.vae.config.scaling_factor if getattr(pipeline, "is_cosxl_edit", False) else 1.0
    return latents.to(pipeline.unet.dtype) * scale


def decode_latents(pipeline: Any, latents: Tensor) -> NDArray[np.uint8]:
    """(N, C, h, w) to (N, H, W, 3)."""
    vae = pipeline.vae
    pixels = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
    scaled = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    images: NDArray[np.uint8] = scaled.permute(0, 2, 3, 1).cpu().numpy()
    return images


def denoise(
    pipeline: Any,
    conditions: Conditions,
    num_inference_steps: int,
    seeds: Sequence[int],
) -> Tensor:
    """Samples latents from noise; each image's chance comes from its own generator on the CPU."""
    unet = pipeline.unet
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)  # a fresh one holds no earlier state
    scheduler.set_timesteps(num_inference_steps, device=unet.device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = conditions.image.shape[1:]
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    latents = noise.to(unet.device, unet.dtype) * scheduler.init_noise_sigma
    options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for timestep in scheduler.timesteps:

        def predict(inputs: Tensor, text: Tensor, at: Tensor = timestep) -> Tensor:
            prediction: Tensor = unet(inputs, at, text, added_cond_kwargs=conditions.added, return_dict=False)[0]
            return prediction

        prediction = guided(predict, scheduler.scale_model_input(latents, timestep), conditions)
        latents = scheduler.step(prediction, timestep, latents, **options, return_dict=False)[0]
    result: Tensor = latents
    return result


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
    """One evaluation of the UNet and its weight in the sum."""

    weight: float
    with_image: bool
    with_text: bool


def guidance_terms(guidance_scale: float, image_guidance_scale: float) -> list[Term]:
    """The evaluations that the scales call for: one to three."""
    terms = [
        Term(guidance_scale, with_image=True, with_text=True),
        Term(image_guidance_scale - guidance_scale, with_image=True, with_text=False),
        Term(1 - image_guidance_scale, with_image=False, with_text=False),
    ]
    return [term for term in terms if term.weight != 0]


@dataclass(frozen=True, slots=True)
class Texts:
    """What the text encoders say of N instructions, and of none."""

    hidden: Tensor
    """(N, L, D)."""
    none: Tensor
    """(1, L, D)."""
    pooled: Tensor | None = None
    """(N, P), of a Stable Diffusion XL; so is the next."""
    pooled_none: Tensor | None = None
    """(1, P)."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the edits of a batch are conditioned on, once per term, stacked."""

    terms: list[Term]
    image: Tensor
    """(terms * N, C, H, W)."""
    text: Tensor
    """(terms * N, L, D)."""
    added: dict[str, Tensor] | None = None
    """A Stable Diffusion XL's pooled texts and sizes, as its UNet takes them."""


def stack_conditions(terms: list[Term], image: Tensor, texts: Texts, size: Sequence[int]) -> Conditions:
    """Repeats the conditions for each term; a missing image is zero, a missing text what the pipeline takes for none.

    `size` is the images' (height, width), which a Stable Diffusion XL is told.
    """
    images = [image if term.with_image else torch.zeros_like(image) for term in terms]
    hidden = _stacked(terms, texts.hidden, texts.none)
    if texts.pooled is None or texts.pooled_none is None:
        return Conditions(terms, torch.cat(images), hidden)
    pooled = _stacked(terms, texts.pooled, texts.pooled_none)
    time_ids = torch.tensor([*size, 0, 0, *size], device=pooled.device).expand(len(pooled), -1)
    return Conditions(terms, torch.cat(images), hidden, {"text_embeds": pooled, "time_ids": time_ids})


def _stacked(terms: list[Term], text: Tensor, none: Tensor) -> Tensor:
    return torch.cat([text if term.with_text else none.expand_as(text) for term in terms])


def guided(predict: Callable[[Tensor, Tensor], Tensor], latents: Tensor, conditions: Conditions) -> Tensor:
    """The weighted sum of the predictions. `predict` takes the UNet's input and the text."""
    repeated = torch.cat([latents] * len(conditions.terms))
    predictions = predict(torch.cat([repeated, conditions.image], dim=1), conditions.text).chunk(len(conditions.terms))
    total = torch.zeros_like(latents)
    for term, prediction in zip(conditions.terms, predictions, strict=True):
        total += term.weight * prediction
    return total
