"""Knobs of the rendering."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ip2p.config.fields import check, check_positive, check_range, check_unit

Precision = Literal["auto", "float32", "float16", "bfloat16"]

AttentionBackend = Literal["auto", "sdpa", "xformers"]

FRACTIONS = ("p2p", "cross_p2p", "shared_steps", "reweight_steps", "local_blend")
"""Ranges of fractions of the steps."""

CrossAlignment = Literal["replace", "refine"]

ImageFormat = Literal["png", "webp", "jpeg"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EditTypeRendering:
    """What the candidates of one edit type are rendered with, where it is not what all others are."""

    num_candidates: int | None = None
    """Candidates to render per triplet."""
    guidance_scale: tuple[float, float] | None = None
    """Range of the classifier-free guidance."""
    p2p: tuple[float, float] | None = None
    """Range of the fraction of steps with shared self-attention."""
    cross_p2p: tuple[float, float] | None = None
    """Range of the fraction of steps with shared cross-attention."""
    shared_steps: tuple[float, float] | None = None
    """Range of the fraction of first steps in which both sides follow the original's caption."""
    reweight: tuple[float, float] | None = None
    """Range of the factor on the maps of the edited caption's new words."""
    reweight_steps: tuple[float, float] | None = None
    """Range of the fraction of first steps in which it holds."""
    local_blend: tuple[float, float] | None = None
    """Range of the fraction of last steps in which only the changed words' places may differ."""

    def __post_init__(self) -> None:
        _check_draws(self)


def _check_draws(config: RenderingConfig | EditTypeRendering) -> None:
    check_positive(config, "num_candidates")
    for name in ("guidance_scale", "reweight", *FRACTIONS):
        if (bounds := getattr(config, name)) is not None:
            check_range(name, bounds)
            if name in FRACTIONS:
                check_unit(name, *bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderingConfig:
    """Edit triplets to candidate pairs, with prompt-to-prompt."""

    model: str = ""
    """Folder or hub id of the text-to-image model."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    variant: str | None = None
    """Weight variant on the hub, such as fp16."""
    dtype: Precision = "float32"
    """Precision of weights and activations; `auto` is bfloat16 where the device multiplies it itself, else float32."""
    device: str = "auto"
    """Where to render: cpu, cuda, cuda:1, mps; `auto` takes the best there is."""
    scheduler: str | None = None
    """A diffusers scheduler class by name; the model's own by default."""
    num_inference_steps: int = 50
    """Denoising steps."""
    first_look_steps: int | None = None
    """Render every candidate in so few steps first, and in full only if that passes the filter within
    `filtering.first_look_slack`. Pays where most candidates are rejected."""
    guidance_scale: tuple[float, float] = (7.5, 15.0)
    """Range of the classifier-free guidance, drawn per candidate."""
    p2p: tuple[float, float] = (0.1, 0.9)
    """Range of the fraction of steps with shared self-attention, drawn per candidate."""
    cross_p2p: tuple[float, float] = (0.0, 0.0)
    """Range of the fraction of steps with shared cross-attention, drawn per candidate; the paper has none."""
    cross_alignment: CrossAlignment = "replace"
    """Which tokens share it: "refine" those that both captions have, "replace" also a word that another stands for."""
    shared_steps: tuple[float, float] = (0.0, 0.0)
    """Range of the fraction of first steps in which both sides follow the original's caption, drawn per candidate.

    What these steps settle, mostly layout, is then the same on both sides, and each costs half. The paper has none.
    """
    reweight: tuple[float, float] = (1.0, 1.0)
    """Range of the factor on the cross-attention maps of the edited caption's new words, drawn per candidate."""
    reweight_steps: tuple[float, float] = (1.0, 1.0)
    """Range of the fraction of first steps in which that factor holds, drawn per candidate."""
    local_blend: tuple[float, float] = (0.0, 0.0)
    """Range of the fraction of last steps in which only the changed words' places may differ, drawn per candidate.

    Those are where the words that one caption has and the other has not are attended to (local blend, Hertz et al.;
    they take 0.8). The paper has none.
    """
    blend_threshold: float = 0.3
    """Local blend: a place is a word's where its map exceeds this share of the map's maximum."""
    blend_max_positions: int = 256
    """Local blend looks at the maps of the layers with the most positions, up to this number; 256 is 16 x 16."""
    p2p_max_positions: int | None = None
    """Share self-attention only in layers of at most so many positions (Hertz et al.: 256); in all by default."""
    attention_backend: AttentionBackend = "auto"
    """torch's fused kernel (`sdpa`, also what `auto` takes), or xformers' where it can run."""
    num_candidates: int = 4
    """Candidates to render per triplet; at most so many where `filtering.selection` is "first"."""
    per_edit_type: dict[str, EditTypeRendering] = field(default_factory=dict)
    """What single edit types are rendered with instead: some bear more sharing, some need more candidates."""
    batch_size: int = 8
    """Pairs per batch; the result does not depend on it."""
    height: int | None = None
    """Image height in pixels; the model's own by default."""
    width: int | None = None
    """Image width in pixels; the model's own by default."""
    image_format: ImageFormat = "png"
    """Codec of the stored images; CLIP scores what comes out of it."""
    image_quality: int = 95
    """Quality of a lossy codec."""
    keep_rejected_images: bool = False
    """Keep the images of rejected candidates too."""
    seed: int = 0
    """Seed of the run; every draw is a hash of it, the triplet and the candidate's number."""

    def __post_init__(self) -> None:
        check_positive(self, "num_inference_steps", "first_look_steps", "batch_size", "height", "width")
        check(
            self.first_look_steps is None or self.first_look_steps < self.num_inference_steps,
            f"first_look_steps must be less than num_inference_steps ({self.num_inference_steps}), "
            f"got {self.first_look_steps}. Leave it out to render in full at once.",
        )
        check_positive(self, "blend_max_positions", "p2p_max_positions")
        check_unit("blend_threshold", self.blend_threshold)
        _check_draws(self)
        check(1 <= self.image_quality <= 100, f"image_quality must lie in 1..100, got {self.image_quality}.")
