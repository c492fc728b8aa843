"""Calls a base's denoiser on rows that each follow a caption, under a guidance scale of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor

from ip2p.models.architecture import Architecture, architecture_of
from ip2p.models.texts import Texts


@dataclass(frozen=True, slots=True)
class CaptionedDenoiser:
    """A denoiser with M captions, which the rows of a call name by their numbers."""

    base: Architecture
    denoiser: ModelMixin
    texts: Texts
    """(1 + M, …) no text, then the captions."""
    scales: Tensor
    """(M,) guidance; at 1 or below, the prediction with the caption is taken as it is."""
    guided: tuple[bool, ...]
    """Whether each caption's scale is above 1, for the host, which does not wait for the device to tell."""
    has_one_half: bool
    """Whether the denoiser was distilled with guidance, so that it needs no half without text."""
    sizes: Tensor
    """(6,) the images' height and width, the crop's top and left, height and width again."""

    @classmethod
    def of(
        cls,
        pipeline: DiffusionPipeline,
        captions: Sequence[str],
        scales: Sequence[float],
        size: Sequence[int],
        max_sequence_length: int | None = None,
    ) -> Self:
        """Encodes captions of images of a size, (height, width)."""
        base = architecture_of(pipeline)
        denoiser = base.denoiser(pipeline)
        texts = base.encode(pipeline, ["", *captions], max_sequence_length)
        guidance = torch.tensor([max(1.0, scale) for scale in scales], device=denoiser.device)
        sizes = torch.tensor([*size, 0, 0, *size], device=denoiser.device)
        guided = tuple(scale > 1 for scale in scales)
        return cls(base, denoiser, texts, guidance, guided, base.has_one_half(pipeline), sizes)

    def predict(self, latents: Tensor, timestep: Tensor, rows: Tensor) -> Tensor:
        """Returns the float32 predictions for (R, C, h, w) latents, whose rows follow the captions numbered `rows`.

        `rows` are on the host.
        """
        num_halves = 1 if self.has_one_half or not any(self.guided[row] for row in rows.tolist()) else 2
        rows = rows.to(self.scales.device, non_blocking=True)
        scales = self.scales[rows]
        inputs = latents.to(self.denoiser.dtype).repeat(num_halves, 1, 1, 1)
        places = rows + 1 if num_halves == 1 else torch.cat([torch.zeros_like(rows), rows + 1])
        texts = self.texts.map(lambda values: values[places.to(values.device)])
        guidance = scales if self.has_one_half else None
        predicted = self.base.predict(
            self.denoiser, inputs, timestep, texts, sizes=self.sizes, guidance=guidance
        ).float()
        if num_halves == 1:
            return predicted
        without, towards = predicted.chunk(2)
        return without + scales.view(-1, 1, 1, 1) * (towards - without)
