"""Similarity of a pair's two images by a self-supervised model such as DINOv2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ip2p.config import ScoringConfig
from ip2p.scoring.score import Batch, Measure, Score

if TYPE_CHECKING:
    from PIL import Image

    from ip2p.models.loading import ImageModel


def image_similarities(
    model: ImageModel, originals: Sequence[Image.Image], edited: Sequence[Image.Image], *, batch_size: int
) -> list[float]:
    """Returns the cosine similarities of the first token's states, one per pair; in [-1, 1]."""
    import torch
    import torch.nn.functional as F

    images, states = [*originals, *edited], []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            pixels = model.processor(images=images[start : start + batch_size], return_tensors="pt").pixel_values
            states.append(model.model(pixels.to(model.device)).last_hidden_state[:, 0].float().cpu())
    one, other = torch.cat(states).chunk(2)
    return F.cosine_similarity(one, other, dim=-1).tolist()


def _prepare(config: ScoringConfig) -> Measure:
    from ip2p.models import loading

    model = loading.load_image_model(config.dino_model or "", device=config.device)

    def measure(batch: Batch) -> list[float]:
        return image_similarities(model, batch.originals, batch.edited, batch_size=config.batch_size)

    return measure


SCORES = (
    Score(
        name="dino",
        column="dino",
        title="DINO",
        meaning="Original image ↔ edited image, by DINO",
        unit="cosine similarity",
        too_low="images too unlike for DINO",
        too_high="images too alike for DINO",
        is_similarity=True,
        setting="dino_model",
        prepare=_prepare,
        place=40,
    ),
)
