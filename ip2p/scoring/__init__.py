"""All scores of a pair that a config asks for, with the models loaded once per process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from ip2p.config import ScoringConfig
from ip2p.models import loading
from ip2p.records import EditTriplet, PairScores
from ip2p.scoring.clip import PairScorer
from ip2p.scoring.nsfw import load_nsfw_head
from ip2p.scoring.pictures import contrast, image_similarities, ssim


@dataclass(frozen=True, slots=True)
class Scorer:
    """CLIP's similarities, the contrast and, where asked for, SSIM and DINOv2."""

    config: ScoringConfig
    clip: PairScorer
    images: loading.ImageModel | None

    def score(
        self, triplets: Sequence[EditTriplet], originals: Sequence[Image.Image], edited: Sequence[Image.Image]
    ) -> list[PairScores]:
        """One `PairScores` per triplet and its two RGB images."""
        if not triplets:
            return []
        alike: Sequence[float | None] = [None] * len(triplets)
        if self.images is not None:
            alike = image_similarities(self.images, originals, edited, batch_size=self.config.batch_size)
        return [
            replace(
                scores,
                contrast=min(contrast(one), contrast(other)),
                ssim=ssim(one, other) if self.config.ssim else None,
                dino=dino,
            )
            for scores, one, other, dino in zip(
                self.clip.score(triplets, originals, edited), originals, edited, alike, strict=True
            )
        ]


def load_scorer(config: ScoringConfig) -> Scorer:
    """The scorer of a config."""
    images = loading.load_image_model(config.dino_model, device=config.device) if config.dino_model else None
    return Scorer(config, load_pair_scorer(config), images)


def load_pair_scorer(config: ScoringConfig) -> PairScorer:
    """CLIP's part of it."""
    clip = loading.load_clip(config.clip_model, config.clip_pretrained, device=config.device)
    nsfw = load_nsfw_head(config.nsfw_head) if config.nsfw_head else None
    return PairScorer(clip, batch_size=config.batch_size, nsfw=nsfw)
