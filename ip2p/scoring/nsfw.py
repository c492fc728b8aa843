"""How unsafe the worse of a pair's two images looks, by a small head on CLIP's embeddings."""

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
"""A safety checker lowers its thresholds by this if an image is close to one of its "special care" concepts."""


def load_nsfw_head(source: str) -> NsfwHead:
    """Loads a safety checker's folder, which calls scores above 0 unsafe, or a .safetensors file of linear layers."""
    if source.endswith(".safetensors"):
        from safetensors.torch import load_file

        path = Path(source).expanduser()
        if not path.is_file():
            raise ValueError(f"scoring.nsfw_head {source} does not exist. Give a .safetensors file or a folder.")
        return _checked(layers_head(load_file(path)), source)
    return _checked(_load_safety_checker(source), source)


def layers_head(weights: dict[str, Tensor]) -> NsfwHead:
    """Builds a head of linear layers named by their place in a `Sequential`, such as `layers.3.weight`.

    Its score is a probability. A gap between two places stands for a rectifier (and dropout); neighbours have none
    between them.
    """
    import torch.nn.functional as F

    layers = {int(match[1]): name for name in weights if (match := re.search(r"(\d+)\.weight$", name))}
    places = sorted(layers)
    if not places or weights[layers[places[-1]]].shape[0] != 1:
        raise ValueError(
            "scoring.nsfw_head must hold linear layers 0.weight, 0.bias, … of which the last has one output, "
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
    """Scores by the greatest margin over the concepts' thresholds, as diffusers' `StableDiffusionSafetyChecker`."""
    concepts, limits, special, special_limits = (
        weights[name].float()
        for name in ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights")
    )

    def score(embeddings: Tensor) -> Tensor:
        wary = ((_cosines(embeddings, special) - special_limits).round(decimals=3) > 0).any(dim=1, keepdim=True)
        margins = _cosines(embeddings, concepts) - limits + CARE * wary
        return margins.amax(dim=1).round(decimals=3)  # as it rounds

    return score


def _cosines(embeddings: Tensor, concepts: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.normalize(embeddings, dim=-1) @ F.normalize(concepts, dim=-1).T


def _load_safety_checker(source: str) -> NsfwHead:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    from ip2p.models.loading import check_model_source, from_source

    folder = check_model_source(source, what="scoring.nsfw_head", marker="config.json")
    checker = from_source(StableDiffusionSafetyChecker.from_pretrained, folder, what=f"the safety checker {source}")
    return safety_head(checker.state_dict())


def _checked(head: NsfwHead, source: str) -> NsfwHead:
    import torch

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


def _prepare(config: ScoringConfig) -> Measure:
    head = load_nsfw_head(config.nsfw_head or "")

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
