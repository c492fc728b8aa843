"""Two guidances as one weighted sum, so that terms of weight zero are not computed.

The paper's equation 3, e(0,0) + s_I (e(I,0) - e(0,0)) + s_T (e(I,T) - e(I,0)), with its terms collected. Unlike
diffusers' pipeline it holds for every scale, below 1 too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
