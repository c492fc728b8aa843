"""NSFW score of the worse of a pair's two images, by a small head on CLIP's embeddings."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ip2p.config import ScoringConfig
from ip2p.scoring.score import Batch, Measure, Score

if TYPE_CHECKING:
    from torch import Tensor

    NsfwHead = Callable[[Tensor], Tensor]
    """Turns (N, D) unit embeddings into (N,) scores, higher is worse. ValueError for embeddings of another width."""

CARE = 0.01
"""How much a safety checker lowers its thresholds if an image is close to one of its "special care" concepts."""


def load_nsfw_head(source: str) -> NsfwHead:
    """Loads a safety checker's folder, which calls scores above 0 unsafe, or a .safetensors file of linear layers."""
    import torch

    head = _read_layers(source) if source.endswith(".safetensors") else _read_safety_checker(source)

    @torch.inference_mode()
    def score(embeddings: Tensor) -> Tensor:
        try:
            return head(embeddings)
        except RuntimeError as error:
            raise ValueError(
                f"scoring.nsfw_head {source} does not fit embeddings of {embeddings.shape[1]} numbers. "
                "Give the scoring.clip_model that it was trained on: ViT-L-14 by openai for a safety checker."
            ) from error

    return score


def _read_layers(source: str) -> NsfwHead:
    from safetensors.torch import load_file

    from ip2p.models.loading import from_source

    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"scoring.nsfw_head {source} does not exist. Give a .safetensors file or a folder.")
    way_out = "Give a whole .safetensors file or a folder."
    return layers_head(from_source(load_file, str(path), what=f"scoring.nsfw_head {source}", way_out=way_out))


def _read_safety_checker(source: str) -> NsfwHead:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    from ip2p.models.loading import check_model_source, from_source

    folder = check_model_source(source, what="scoring.nsfw_head", marker="config.json")
    checker = from_source(StableDiffusionSafetyChecker.from_pretrained, folder, what=f"the safety checker {source}")
    return safety_head(checker.state_dict())


def layers_head(weights: dict[str, Tensor]) -> NsfwHead:
    """Builds a head of linear layers named by their place in a `Sequential`, such as `layers.3.weight`.

    Its score is a probability. A gap between two places stands for a rectifier (and dropout).
    """
    import torch.nn.functional as F

    layers = {int(match[1]): name for name in weights if (match := re.search(r"(\d+)\.weight$", name))}
    places = sorted(layers)
    if not places or weights[layers[places[-1]]].shape[0] != 1:
        raise ValueError(
            "scoring.nsfw_head must hold linear layers 0.weight, 0.bias, …, the last with one output, "
            f"got {', '.join(sorted(weights)) or 'nothing'}."
        )
    rectified = {place for place, after in pairwise(places) if after > place + 1}

    def score(embeddings: Tensor) -> Tensor:
        states = embeddings
        for place in places:
            name = layers[place]
            states = F.linear(states, weights[name].float(), weights[name.removesuffix("weight") + "bias"].float())
            states = states.relu() if place in rectified else states
        return states[:, 0].sigmoid()

    return score


def safety_head(weights: dict[str, Tensor]) -> NsfwHead:
    """Scores by the greatest margin over the concepts' thresholds, like diffusers' `StableDiffusionSafetyChecker`."""
    import torch.nn.functional as F

    concepts, limits, special, special_limits = (
        weights[name].float()
        for name in ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights")
    )

    def cosines(embeddings: Tensor, others: Tensor) -> Tensor:
        return F.normalize(embeddings, dim=-1) @ F.normalize(others, dim=-1).T

    def score(embeddings: Tensor) -> Tensor:
        needs_care = ((cosines(embeddings, special) - special_limits).round(decimals=3) > 0).any(dim=1, keepdim=True)
        margins = cosines(embeddings, concepts) - limits + CARE * needs_care
        return margins.amax(dim=1).round(decimals=3)  # the checker rounds too

    return score


def _prepare(config: ScoringConfig) -> Measure:
    from ip2p.models.loading import load_once

    source = config.nsfw_head or ""
    head = load_once(("nsfw-head", source), lambda: load_nsfw_head(source), files=[source])

    def measure(batch: Batch) -> list[float]:
        worse: list[float] = head(batch.embeddings).view(2, -1).amax(0).tolist()
        return worse

    return measure


SCORES = (
    Score(
        name="nsfw",
        column="nsfw",
        title="NSFW",
        meaning="NSFW score of the worse image",
        unit="probability, or margin over the checker's threshold",
        too_high="unsafe picture",
        is_similarity=False,
        setting="nsfw_head",
        prepare=_prepare,
        place=50,
    ),
)
