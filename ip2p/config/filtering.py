"""Settings of the scores and of the filter.

A score that has fields here is set by them. One that has none, since it came later, is set by `further`: its file in
`ip2p/scoring` is all that it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from ip2p.config.fields import OMIT_IF_EMPTY, RESULT_FREE, check, check_positive

Selection = Literal["best", "first"]


def _own_fields(config: Any) -> list[str]:
    return [field.name for field in fields(config) if field.name != "further"]


def _check_further(config: Any, where: str) -> None:
    """Refuses to set a field in two ways."""
    for name in config.further:
        check(name not in _own_fields(config), f"{where}.further sets {name}, which has a field. Set {where}.{name}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringConfig:
    """The CLIP that scores candidates, and which other scores are measured."""

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
    further: dict[str, str] = field(default_factory=dict, metadata=OMIT_IF_EMPTY)
    """Settings of scores that have no field here, by the `setting` that their file in ip2p/scoring declares."""
    device: str = field(default="auto", metadata=RESULT_FREE)
    """Where to score."""
    batch_size: int = field(default=64, metadata=RESULT_FREE)
    """Images per batch."""

    def __post_init__(self) -> None:
        check_positive(self, "batch_size")
        _check_further(self, "scoring")

    def get(self, name: str) -> Any:
        """Returns a setting by name, one of `further` too; None if it is not set."""
        return getattr(self, name) if name in _own_fields(self) else self.further.get(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Bounds on the scores of accepted pairs (paper, appendix A.2)."""

    original: float = 0.2
    """Least similarity of original image and original prompt."""
    edited: float = 0.2
    """Least similarity of edited image and edited prompt."""
    direction: float = 0.2
    """Least similarity of change of image and change of text."""
    image: float = 0.7
    """Least similarity of original image and edited image."""
    max_image: float | None = None
    """Greatest similarity of the two images, above which nothing was edited; unlimited by default."""
    contrast: float | None = None
    """Least contrast of either image: a flat one, all black for instance, has none."""
    ssim: float | None = None
    """Least structural similarity; requires `scoring.ssim`."""
    max_ssim: float | None = None
    """Greatest structural similarity."""
    dino: float | None = None
    """Least similarity by `scoring.dino_model`."""
    max_dino: float | None = None
    """Greatest such similarity."""
    max_nsfw: float | None = None
    """Greatest score by `scoring.nsfw_head`: 0 for a safety checker, 0.5 or less for a probability."""
    further: dict[str, float] = field(default_factory=dict, metadata=OMIT_IF_EMPTY)
    """Bounds on scores that have no field here: `name` is the least, `max_name` the greatest value."""

    def __post_init__(self) -> None:
        _check_further(self, "filtering.thresholds")

    @property
    def bounds(self) -> dict[str, float]:
        """Returns all bounds that are set, by name."""
        own = {name: bound for name in _own_fields(self) if (bound := getattr(self, name)) is not None}
        return own | self.further

    def with_bounds(self, changes: Mapping[str, float]) -> Thresholds:
        """Returns a copy with some bounds changed."""
        own = _own_fields(self)
        further = self.further | {name: bound for name, bound in changes.items() if name not in own}
        fixed: dict[str, Any] = {name: bound for name, bound in changes.items() if name in own}
        return replace(self, **fixed, further=further)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilteringConfig:
    """Which candidates become pairs."""

    thresholds: Thresholds = Thresholds()
    """For every edit type without thresholds of its own."""
    per_edit_type: dict[str, Thresholds] = field(default_factory=dict)
    """Thresholds of single edit types."""
    max_pairs_per_triplet: int = 4
    """Keep at most this many."""
    selection: Selection = "best"
    """Which: "best" by direction of all its candidates, or the "first" by number, after which no more are rendered."""

    first_look_slack: float = 0.1
    """How far beyond a threshold the scores of a first look (`rendering.first_look_steps`) may lie."""

    def __post_init__(self) -> None:
        check_positive(self, "max_pairs_per_triplet")
