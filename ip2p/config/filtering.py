"""Settings of the scores and of the filter.

A score with fields here is set by them. A score without any, such as one that was added as a single file in
`ip2p/scoring`, is set by `further`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from ip2p.config.fields import OMIT_IF_EMPTY, RESULT_FREE, check, check_positive
from ip2p.config.vlm import VlmConfig

Selection = Literal["best", "first"]


def path_of(section: type[ScoringConfig] | type[Thresholds], name: str) -> str:
    """Returns where a section keeps the setting of this name: in a field, or in `further` if it has none for it."""
    return name if name in _own_fields(section) else f"further.{name}"


def _own_fields(config: object) -> list[str]:
    return [field.name for field in fields(config) if field.name != "further"]  # type: ignore[arg-type]


def _check_further(config: ScoringConfig | Thresholds, section: str) -> None:
    """Refuses to set a field in two ways."""
    for name in config.further:
        has_field = name in _own_fields(config)
        check(not has_field, f"{section}.further sets {name}, which has a field. Set {section}.{name}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringConfig:
    """The CLIP that scores candidates, and the other scores to measure."""

    clip_model: str = "ViT-L-14"
    """An open_clip architecture, or a folder that holds open_clip_config.json and its weights."""
    clip_pretrained: str | None = "openai"
    """open_clip's name for the weights; unused for a folder."""
    ssim: bool = False
    """Also score the structural similarity of the two images."""
    dino_model: str | None = None
    """Folder or hub id of a self-supervised image model, such as facebook/dinov2-base, to score image similarity."""
    nsfw_head: str | None = None
    """Head on the embeddings of `clip_model`, to score NSFW content: the folder of a Stable Diffusion safety checker
    (its CLIP is ViT-L-14 by openai), or a .safetensors file of linear layers that end in one number."""
    shift: bool = field(default=False, metadata=OMIT_IF_EMPTY)
    """Also score how far the changed part moved."""
    frame: bool = field(default=False, metadata=OMIT_IF_EMPTY)
    """Also score how far what did not change was moved, grown or turned."""
    regions: bool = field(default=False, metadata=OMIT_IF_EMPTY)
    """Also score how alike the two images are inside and outside the area that changed."""
    lpips: Literal["alex", "vgg", "squeeze"] | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Backbone of LPIPS, to score the distance inside and outside that area; needs the package lpips."""
    further: dict[str, str] = field(default_factory=dict, metadata=OMIT_IF_EMPTY)
    """Settings of scores without a field here, by the `setting` that their file in ip2p/scoring declares."""
    device: str = field(default="auto", metadata=RESULT_FREE)
    """Device to score on."""
    batch_size: int = field(default=64, metadata=RESULT_FREE)
    """Images per batch."""

    def __post_init__(self) -> None:
        check_positive(self, "batch_size")
        _check_further(self, "scoring")

    def get(self, name: str) -> Any:
        """Returns a setting by name, also one of `further`; None if it is not set."""
        return getattr(self, name) if name in _own_fields(self) else self.further.get(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Bounds on the scores of accepted pairs (paper, appendix A.2)."""

    original: float = 0.2
    """Minimum similarity of original image and original prompt."""
    edited: float = 0.2
    """Minimum similarity of edited image and edited prompt."""
    direction: float = 0.2
    """Minimum similarity of the change of image and the change of text."""
    image: float = 0.7
    """Minimum similarity of original image and edited image."""
    max_image: float | None = None
    """Maximum similarity of the two images, above which nothing was edited; unlimited by default."""
    contrast: float | None = None
    """Minimum contrast of either image; a flat image, such as an all-black one, has none."""
    ssim: float | None = None
    """Minimum structural similarity; requires `scoring.ssim`."""
    max_ssim: float | None = None
    """Maximum structural similarity."""
    dino: float | None = None
    """Minimum similarity by `scoring.dino_model`."""
    max_dino: float | None = None
    """Maximum similarity by `scoring.dino_model`."""
    max_nsfw: float | None = None
    """Maximum score by `scoring.nsfw_head`: 0 for a safety checker, 0.5 or less for a probability."""
    max_shift: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Maximum distance that the changed part moved, as a share of the shorter side; requires `scoring.shift`."""
    max_frame_drift: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Maximum distance that a corner of what did not change moved, as a share of the shorter side; requires
    `scoring.frame`. A pair of which it cannot be measured passes."""
    max_frame_shift: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Maximum distance that the middle of what did not change moved, as a share of the shorter side."""
    frame_scale: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Minimum growth of what did not change, such as 0.99."""
    max_frame_scale: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Maximum growth of what did not change, such as 1.01."""
    max_frame_rotation: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Maximum degrees by which what did not change was turned."""
    changed_share: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Minimum share of the picture that changed; requires `scoring.regions`, as the next five do."""
    max_changed_share: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Maximum share of the picture that changed."""
    max_ssim_inside: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Maximum structural similarity inside the area that changed."""
    ssim_outside: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Minimum structural similarity outside the area that changed."""
    colour_inside: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Minimum colour difference (CIEDE2000) inside the area that changed."""
    max_colour_outside: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Maximum colour difference (CIEDE2000) outside the area that changed."""
    lpips_inside: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Minimum LPIPS inside the area that changed; requires `scoring.lpips`, not `scoring.regions`."""
    max_lpips_outside: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Maximum LPIPS outside the area that changed; requires `scoring.lpips`."""
    vlm_followed: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Minimum score from 0 to 10 of how far the instruction was followed, by `filtering.vlm`."""
    vlm_kept: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Minimum score of how much else was kept, by `filtering.vlm`."""
    vlm_quality: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Minimum score of how natural and clean the edited image is, by `filtering.vlm`."""
    further: dict[str, float] = field(default_factory=dict, metadata=OMIT_IF_EMPTY)
    """Bounds on scores without a field here: `name` is the minimum, `max_name` the maximum."""

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
    """Thresholds of every edit type without an entry in `per_edit_type`."""
    per_edit_type: dict[str, Thresholds] = field(default_factory=dict)
    """Thresholds of single edit types."""
    max_pairs_per_triplet: int = 4
    """Maximum number of pairs kept per triplet."""
    selection: Selection = "best"
    """Keep the "best" of all candidates by direction, or the "first" by number, after which no more are rendered."""
    first_look_slack: float = 0.1
    """How far beyond a threshold the scores of a first look (`rendering.first_look_steps`) may be."""
    vlm: VlmConfig = field(default=VlmConfig(), metadata=OMIT_IF_EMPTY)
    """Vision-language judge of the pairs that pass all other thresholds. Its scores and answers are stored."""
    vlm_rewrite: bool = field(default=False, metadata=OMIT_IF_EMPTY)
    """Also ask the judge which instruction each accepted pair shows, see `dataset.edit_prompt`."""

    def __post_init__(self) -> None:
        check_positive(self, "max_pairs_per_triplet")
        has_judge = self.vlm.model is not None or not self.vlm_rewrite
        check(has_judge, "filtering.vlm_rewrite needs a judge, got none. Set filtering.vlm.model.")
