"""Two guidances as one weighted sum, so that terms of weight zero are not computed.

The paper's equation 3, e(0,0) + s_I (e(I,0) - e(0,0)) + s_T (e(I,T) - e(I,0)), with its terms collected. Unlike
diffusers' pipeline it holds for every scale, below 1 too.
"""

from __future__ import annotations

from collections.abc import Callable
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
class Conditions:
    """What the edits of a batch are conditioned on, once per term, stacked."""

    terms: list[Term]
    image: Tensor
    """(terms * N, C, H, W)."""
    text: Tensor
    """(terms * N, L, D)."""


def stack_conditions(terms: list[Term], image: Tensor, text: Tensor, null_text: Tensor) -> Conditions:
    """Repeats the conditions for each term; a missing image is zero, a missing text the empty instruction."""
    no_text = null_text.expand_as(text)
    images = [image if term.with_image else torch.zeros_like(image) for term in terms]
    texts = [text if term.with_text else no_text for term in terms]
    return Conditions(terms, torch.cat(images), torch.cat(texts))


def guided(predict: Callable[[Tensor, Tensor], Tensor], latents: Tensor, conditions: Conditions) -> Tensor:
    """The weighted sum of the predictions. `predict` takes the UNet's input and the text."""
    repeated = torch.cat([latents] * len(conditions.terms))
    predictions = predict(torch.cat([repeated, conditions.image], dim=1), conditions.text).chunk(len(conditions.terms))
    total = torch.zeros_like(latents)
    for term, prediction in zip(conditions.terms, predictions, strict=True):
        total += term.weight * prediction
    return total
