"""Settings of the rendering."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ip2p.config.fields import (
    OMIT_IF_EMPTY,
    RESULT_FREE,
    check,
    check_not_negative,
    check_positive,
    check_range,
    check_unit,
)
from ip2p.config.server import EndpointConfig, ImagesApiConfig

Precision = Literal["auto", "float32", "float16", "bfloat16"]
AttentionBackend = Literal["auto", "sdpa", "xformers"]
CrossAlignment = Literal["replace", "refine"]
ImageFormat = Literal["png", "webp", "jpeg"]
RenderingBackend = Literal["p2p", "editor", "images-api", "flowedit", "sdedit"]
"""What makes pairs, a module of `ip2p.rendering.backends` each."""
MADE_BY_SERVER = ("images-api",)
"""Backends of which `model` is a name on a server, and not a folder or a hub id."""

FRACTIONS = ("p2p", "cross_p2p", "shared_steps", "reweight_steps", "local_blend", "strength")
"""Ranges of fractions."""
OPTIONAL_RANGES = ("image_guidance_scale", "strength")
"""Ranges that some backends read; one that is not set is left to the backend."""
SHARING_RANGES = ("p2p", "cross_p2p", "shared_steps", "reweight", "reweight_steps", "local_blend")
"""Ranges that prompt-to-prompt alone reads; for other backends they are not drawn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditTypeRendering:
    """Overrides the rendering of one edit type. What is left out is as for every other type."""

    num_candidates: int | None = None
    """Candidates to render per triplet."""
    guidance_scale: tuple[float, float] | None = None
    """Range of the classifier-free guidance."""
    p2p: tuple[float, float] | None = None
    """Range of the fraction of steps with shared self-attention."""
    cross_p2p: tuple[float, float] | None = None
    """Range of the fraction of steps with shared cross-attention."""
    shared_steps: tuple[float, float] | None = None
    """Range of the fraction of first steps in which both images follow the original caption."""
    reweight: tuple[float, float] | None = None
    """Range of the factor on the attention maps of the edited caption's new words."""
    reweight_steps: tuple[float, float] | None = None
    """Range of the fraction of first steps with that factor."""
    local_blend: tuple[float, float] | None = None
    """Range of the fraction of last steps in which only the regions of the changed words may differ."""
    image_guidance_scale: tuple[float, float] | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Range of the guidance by the picture."""
    strength: tuple[float, float] | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Range of the fraction of noise that the picture is started from."""

    def __post_init__(self) -> None:
        _check_draws(self)


def _check_draws(config: RenderingConfig | EditTypeRendering) -> None:
    check_positive(config, "num_candidates")
    for name in ("guidance_scale", "image_guidance_scale", "reweight", *FRACTIONS):
        if (bounds := getattr(config, name)) is not None:
            check_range(name, bounds)
            if name in FRACTIONS:
                check_unit(name, *bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowEditConfig:
    """FlowEdit: what beside `strength` (its n_max) and `guidance_scale` (the target's) leads from picture to edit."""

    source_guidance_scale: float = 3.5
    """Classifier-free guidance towards the original caption, less than that towards the edited one."""
    n_min: float = 0.0
    """Fraction of last steps that follow the edited caption alone, for edits of the whole look."""
    n_avg: int = 1
    """Noises to average over in each step; each costs as much as the first."""

    def __post_init__(self) -> None:
        check_unit("n_min", self.n_min)
        check_positive(self, "n_avg")
        check_not_negative(self, "source_guidance_scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderingConfig:
    """Makes candidate pairs of edit triplets. Ranges are drawn from once per candidate."""

    backend: RenderingBackend = field(default="p2p", metadata=OMIT_IF_EMPTY)
    """What makes pairs: prompt-to-prompt renders both images; the others edit the pictures of `prompts.pictures`."""
    model: str = ""
    """Folder or hub id of the text-to-image model or, by the backend, of the editor, or its name on the server."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    variant: str | None = None
    """Weight variant on the hub, such as fp16."""
    dtype: Precision = "float32"
    """Precision of the model; `auto` is bfloat16 on hardware that multiplies it natively, else float32."""
    device: str = field(default="auto", metadata=RESULT_FREE)
    """Device to render on: cpu, cuda, cuda:1, mps, or `auto` for the best available."""
    scheduler: str | None = None
    """Class name of a diffusers scheduler. Default: the model's own."""
    num_inference_steps: int = 50
    """Denoising steps."""
    max_sequence_length: int | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Tokens that the T5 text encoder of a model that has one reads. Default: those of its own pipeline."""
    first_look_steps: int | None = None
    """Preview every candidate in this many steps, and render it in full only if the preview passes the filter within
    `filtering.first_look_slack`. Pays off if most candidates are rejected. Default: no preview."""
    guidance_scale: tuple[float, float] = (7.5, 15.0)
    """Range of the classifier-free guidance."""
    server: EndpointConfig = field(default=EndpointConfig(), metadata={**RESULT_FREE, **OMIT_IF_EMPTY})
    """Endpoint of the backend `images-api`."""
    images_api: ImagesApiConfig = field(default=ImagesApiConfig(), metadata=OMIT_IF_EMPTY)
    """What `images-api` requests."""
    flowedit: FlowEditConfig = field(default=FlowEditConfig(), metadata=OMIT_IF_EMPTY)
    """Settings of the backend `flowedit`."""
    p2p: tuple[float, float] = (0.1, 0.9)
    """Range of the fraction of steps with shared self-attention."""
    cross_p2p: tuple[float, float] = (0.0, 0.0)
    """Range of the fraction of steps with shared cross-attention. The paper shares none."""
    cross_alignment: CrossAlignment = "replace"
    """Tokens that share cross-attention: `refine` those in both captions, `replace` also a word and its substitute."""
    shared_steps: tuple[float, float] = (0.0, 0.0)
    """Range of the fraction of first steps in which both images follow the original caption.

    These steps fix mostly the layout, and each costs half. The paper has none.
    """
    reweight: tuple[float, float] = (1.0, 1.0)
    """Range of the factor on the cross-attention maps of the edited caption's new words."""
    reweight_steps: tuple[float, float] = (1.0, 1.0)
    """Range of the fraction of first steps with that factor."""
    local_blend: tuple[float, float] = (0.0, 0.0)
    """Range of the fraction of last steps in which only the regions of the changed words may differ.

    A region is where a word that only one caption has is attended to (local blend; Hertz et al. use 0.8). The paper has
    none.
    """
    image_guidance_scale: tuple[float, float] | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Editors: range of how closely the picture is kept to. Default: the backend's own."""
    strength: tuple[float, float] | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """SDEdit and alike: range of the fraction of noise that the picture is started from. Default: the backend's own."""
    blend_by_difference: bool = field(default=False, metadata=OMIT_IF_EMPTY)
    """Local blend: find the regions by how much the two sides differ, not by their words (compare DiffEdit)."""
    blend_threshold: float = 0.3
    """Local blend: a position belongs to a word if its map exceeds this fraction of the map's maximum. By difference:
    the sides may differ where their difference exceeds this fraction of its maximum."""
    blend_max_positions: int = 256
    """Local blend: use the maps of the largest layers with at most this many positions; 256 is 16 x 16."""
    p2p_max_positions: int | None = None
    """Share self-attention only in layers with at most this many positions (Hertz et al.: 256). Default: in all."""
    attention_backend: AttentionBackend = field(default="auto", metadata=RESULT_FREE)
    """Attention kernel: torch's (`sdpa`, the choice of `auto`) or xformers' if it runs on the device."""
    num_candidates: int = 4
    """Candidates to render per triplet; the most if `filtering.selection` is "first"."""
    per_edit_type: dict[str, EditTypeRendering] = field(default_factory=dict)
    """Overrides by edit type: some tolerate more sharing, some need more candidates."""
    batch_size: int = field(default=8, metadata=RESULT_FREE)
    """Pairs per batch."""
    height: int | None = None
    """Image height in pixels. Default: the model's own."""
    width: int | None = None
    """Image width in pixels. Default: the model's own."""
    composite: bool = field(default=False, metadata=OMIT_IF_EMPTY)
    """Take what did not visibly change from the original, with a soft edge, once the edited picture is aligned with it.
    All but the change is then exactly alike in both."""
    image_format: ImageFormat = "png"
    """Codec of the stored images. Scores are computed on the decoded images."""
    image_quality: int = 95
    """Quality of a lossy codec, 1 to 100."""
    keep_rejected_images: bool = False
    """Keep the images of rejected candidates too."""
    seed: int = 0
    """Seed of the run. Every draw is a hash of it, the triplet and the candidate's number."""

    def draws(self, name: str) -> bool:
        """Returns whether the backend draws from a range, if it is set."""
        return self.backend == "p2p" or name not in SHARING_RANGES

    def __post_init__(self) -> None:
        check_positive(self, "num_inference_steps", "first_look_steps", "batch_size", "height", "width")
        check(
            self.first_look_steps is None or self.first_look_steps < self.num_inference_steps,
            f"first_look_steps must be less than num_inference_steps ({self.num_inference_steps}), "
            f"got {self.first_look_steps}. Leave it out to render in full at once.",
        )
        check_positive(self, "blend_max_positions", "p2p_max_positions")
        check_not_negative(self, "max_sequence_length")
        check_unit("blend_threshold", self.blend_threshold)
        _check_draws(self)
        check(
            1 <= self.image_quality <= 100,
            f"image_quality must lie in 1..100, got {self.image_quality}. Use 95 for a loss that is hardly visible.",
        )
