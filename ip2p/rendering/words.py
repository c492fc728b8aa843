"""Prompt-to-prompt by single words over the steps of a batch: cross-attention maps shared, weighted and blended by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ip2p.config import RenderingConfig
from ip2p.records import Candidate, RenderSpec
from ip2p.rendering.alignment import TokenMap
from ip2p.rendering.attention import SharedAttention
from ip2p.rendering.blend import PlacesOfWords
from ip2p.rendering.conditions import align_captions
from ip2p.rendering.steps import StepRows


@dataclass(frozen=True, slots=True)
class WordSharing:
    """What goes by single words, of the N pairs of a batch."""

    token_maps: TokenMap
    factors: Tensor
    """(N,) on the maps of new words."""
    places: PlacesOfWords
    config: RenderingConfig

    @classmethod
    def of(cls, pipeline: Any, batch: Sequence[Candidate], config: RenderingConfig) -> WordSharing | None:
        """That of a batch; None where no pair goes by words."""
        specs = [candidate.spec for candidate in batch]
        if not any(goes_by_words(spec) for spec in specs):
            return None
        factors = torch.tensor([spec.reweight for spec in specs], device=pipeline.unet.device)
        token_maps = align_captions(pipeline, batch, config.cross_alignment)
        return cls(token_maps, factors, PlacesOfWords(len(batch)), config)

    def before_step(self, plan: StepRows, shared: SharedAttention) -> None:
        """Tells the attention processors what the step shares."""
        shared.cross = plan.cross_sharing(self.token_maps)
        shared.emphasis = plan.emphasis(self.token_maps, self.factors)
        shared.watched = plan.watched_words(self.token_maps, self.config.blend_max_positions)

    def after_step(self, plan: StepRows, shared: SharedAttention, latents: Tensor) -> Tensor:
        """(2 N, C, h, w) latents; where a pair is blended its edited side keeps the original's away from the words."""
        if shared.watched is not None:
            self.places.add(shared.watched)
        if not plan.is_blended.any():
            return latents
        originals, edited = latents.chunk(2)
        may_differ = self.places.mask((latents.shape[2], latents.shape[3]), self.config.blend_threshold)
        may_differ |= ~plan.is_blended.view(-1, 1, 1, 1)
        return torch.cat([originals, torch.where(may_differ, edited, originals)])


def goes_by_words(spec: RenderSpec) -> bool:
    """Whether anything that goes by single words is on."""
    return spec.cross_p2p > 0 or spec.local_blend > 0 or (spec.reweight != 1 and spec.reweight_steps > 0)
