"""Knobs of the scores and of the filter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ip2p.config.fields import RESULT_FREE, check_positive

Selection = Literal["best", "first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringConfig:
    """The CLIP that scores candidates."""

    clip_model: str = "ViT-L-14"
    """An open_clip architecture, or a folder that holds open_clip_config.json and its weights."""
    clip_pretrained: str | None = "openai"
    """open_clip's name of the weights; unused for a folder."""
    ssim: bool = False
    """Score the structural similarity of the two images too."""
    dino_model: str | None = None
    """Folder or hub id of a self-supervised image model, such as facebook/dinov2-base, for one more similarity."""
    nsfw_head: str | None = None
    """A head on the embeddings of `clip_model`, for one more score: the folder of a Stable Diffusion safety checker
    (its CLIP is ViT-L-14 by openai), or a .safetensors file of linear layers that end in one number."""
    device: str = field(default="auto", metadata=RESULT_FREE)
    """Where to score."""
    batch_size: int = field(default=64, metadata=RESULT_FREE)
    """Images per batch."""

    def __post_init__(self) -> None:
        check_positive(self, "batch_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Least similarities for a pair to be accepted (paper, appendix A.2)."""

    original: float = 0.2
    """Original image against original prompt."""
    edited: float = 0.2
    """Edited image against edited prompt."""
    direction: float = 0.2
    """Change of image against change of text."""
    image: float = 0.7
    """Original image against edited image."""
    max_image: float | None = None
    """Greatest similarity of the two images, above which nothing was edited; none by default."""
    contrast: float | None = None
    """Least contrast of either image: a flat one, all black for instance, has none."""
    ssim: float | None = None
    """Least structural similarity; wants `scoring.ssim`."""
    max_ssim: float | None = None
    """Greatest structural similarity."""
    dino: float | None = None
    """Least similarity by `scoring.dino_model`."""
    max_dino: float | None = None
    """Greatest such similarity."""
    max_nsfw: float | None = None
    """Greatest score by `scoring.nsfw_head`: 0 of a safety checker, 0.5 or less of a probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilteringConfig:
    """Which candidates become pairs."""

    thresholds: Thresholds = Thresholds()
    """For every edit type that has none of its own."""
    per_edit_type: dict[str, Thresholds] = field(default_factory=dict)
    """Thresholds of single edit types."""
    max_pairs_per_triplet: int = 4
    """Keep at most so many."""
    selection: Selection = "best"
    """Which: "best" by direction of all its candidates, or the "first" by number, after which no more are rendered."""

    first_look_slack: float = 0.1
    """How far beyond a threshold the scores of a first look (`rendering.first_look_steps`) may lie."""

    def __post_init__(self) -> None:
        check_positive(self, "max_pairs_per_triplet")
