"""How unsafe an image looks, by a small head on the CLIP embedding that the filter has already computed."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ip2p.console import first_line
from ip2p.models.loading import check_model_source

NsfwHead = Callable[[Tensor], Tensor]
"""(N, D) unit embeddings to (N,) scores, higher is worse. ValueError for embeddings of another width."""

CARE = 0.01
"""A safety checker lowers its thresholds by this where an image is close to one of its "special care" concepts."""


def load_nsfw_head(source: str) -> NsfwHead:
    """A safety checker's folder, whose score above 0 is what it calls unsafe, or a .safetensors file of layers."""
    if source.endswith(".safetensors"):
        path = Path(source).expanduser()
        if not path.is_file():
            raise ValueError(f"scoring.nsfw_head {source} does not exist. Give a .safetensors file or a folder.")
        return _checked(layers_head(load_file(path)), source)
    return _checked(_load_safety_checker(source), source)


def layers_head(weights: dict[str, Tensor]) -> NsfwHead:
    """Linear layers named by their place in a `Sequential`, such as `layers.3.weight`; the result is a probability.

    A rectifier lies wherever a place between two of them holds no layer (it is that, and dropout); neighbours have
    none between them.
    """
    places = sorted(int(found[1]) for name in weights if (found := re.search(r"(\d+)\.weight$", name)))
    named = {int(found[1]): name for name in weights if (found := re.search(r"(\d+)\.weight$", name))}
    if not places or weights[named[places[-1]]].shape[0] != 1:
        raise ValueError(
            "scoring.nsfw_head must hold linear layers 0.weight, 0.bias, … of which the last has one output, "
            f"got {', '.join(sorted(weights)) or 'nothing'}."
        )
    rectified = {place for place, after in pairwise(places) if after > place + 1}

    def score(embeddings: Tensor) -> Tensor:
        states = embeddings
        for place in places:
            name = named[place]
            states = F.linear(states, weights[name].float(), weights[name.removesuffix("weight") + "bias"].float())
            states = states.relu() if place in rectified else states
        return states[:, 0].sigmoid()

    return score


def safety_head(weights: dict[str, Tensor]) -> NsfwHead:
    """The concepts of diffusers' `StableDiffusionSafetyChecker`: the greatest margin over its thresholds."""
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
    return F.normalize(embeddings, dim=-1) @ F.normalize(concepts, dim=-1).T


def _load_safety_checker(source: str) -> NsfwHead:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    folder = check_model_source(source, what="scoring.nsfw_head", marker="config.json")
    try:
        checker = StableDiffusionSafetyChecker.from_pretrained(folder)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"could not load the safety checker {source}: {first_line(error)}") from error
    return safety_head(checker.state_dict())


def _checked(head: NsfwHead, source: str) -> NsfwHead:
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
