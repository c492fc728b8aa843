"""Settings of the evaluation and of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ip2p.config.fields import OMIT_IF_EMPTY, RESULT_FREE, check, check_positive, check_share
from ip2p.config.rendering import Precision
from ip2p.config.vlm import VlmConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Measures how well the editor edits and how much it preserves."""

    domain: str | None = None
    """`module:Class` of a domain that draws held-out edits and judges them. Default: the test split, judged by CLIP."""
    data: str | None = None
    """Dataset folder whose test split is edited if there is no domain. Default: the training data."""
    num_edits: int = 490
    """Held-out edits for the main figures."""
    num_sweep_edits: int = 70
    """Held-out edits for the image guidance sweep."""
    num_sdedit_edits: int | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Held-out edits for each strength of SDEdit. Default: those of the sweep."""
    image_guidance_scales: tuple[float, ...] = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
    """Image guidance scales of the sweep (paper, figure 8)."""
    guidance_scale: float = 7.5
    """Text guidance scale."""
    image_guidance_scale: float = 1.5
    """Image guidance scale outside the sweep."""
    sdedit_strengths: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    """Strengths of the SDEdit baseline, which is given the edited caption (paper, figure 8). Empty: no baseline."""
    sdedit_guidance_scale: float = 7.5
    """Text guidance scale of SDEdit."""
    num_grid_edits: int = 4
    """Held-out edits in the grid of guidance scales."""
    grid_guidance_scales: tuple[float, ...] = (3.0, 7.5, 12.0)
    """Text guidance scales of the grid."""
    grid_image_guidance_scales: tuple[float, ...] = (1.0, 1.5, 2.0)
    """Image guidance scales of the grid."""
    judge_clip_model: str | None = None
    """CLIP that judges edits, named as in `scoring.clip_model`. Prefer one other than the filter's, which selected the
    training pairs. Default: the filter's, which the report mentions."""
    judge_clip_pretrained: str | None = None
    """open_clip's name of the judge's weights; unused for a folder."""
    vlm: VlmConfig = VlmConfig()
    """Vision-language judge. Its answers are stored."""
    frame: bool = field(default=False, metadata=OMIT_IF_EMPTY)
    """Also measure how far what did not change was shifted, grown or turned."""
    regions: bool = field(default=False, metadata=OMIT_IF_EMPTY)
    """Also measure similarity outside the area that the two pictures show as changed."""
    lpips: Literal["alex", "vgg", "squeeze"] | None = None
    """Backbone of LPIPS outside the area to edit, if that is known; needs the package lpips. Default: no LPIPS."""
    num_inference_steps: int = 20
    """Denoising steps."""
    resolution: int | None = None
    """Short side in pixels during an edit; 0 is the model's own. Default: the image's own."""
    batch_size: int = field(default=32, metadata=RESULT_FREE)
    """Edits per batch."""
    device: str = field(default="auto", metadata=RESULT_FREE)
    """Device to edit on."""
    dtype: Precision | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Precision of the editor; `auto` is bfloat16 on hardware that multiplies it natively. Default: float32."""
    seed: int = 1
    """Seed of the held-out edits and of the noise."""

    def __post_init__(self) -> None:
        check_positive(self, "num_edits", "num_sweep_edits", "num_sdedit_edits", "num_inference_steps", "batch_size")
        check_share("sdedit_strengths", *self.sdedit_strengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkConfig:
    """Compares editors on the same edits, seeds and settings."""

    source: str
    """A benchmark's test set (folder or hub id), a dataset like ours, a folder or .jsonl of pictures, or `photographs`,
    two that scikit-learn ships."""
    models: tuple[str, ...] = ()
    """Editors: runs, model folders or hub ids. The others are tested against the first."""
    out: Path = field(default=Path("benchmarks/default"), metadata=RESULT_FREE)
    """Folder of the pictures, the figures and the page."""
    protocol: str = "auto"
    """Whose measures are taken, by the name of a benchmark, such as magicbrush, gedit or curve. `auto` decides by the
    source."""
    split: str = "test"
    """Split of a dataset. The two hub repositories of Emu Edit name their splits the other way round."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    num: int | None = None
    """Most edits, balanced over edit types and with whole sessions. Default: all."""
    captions: Path | None = None
    """MagicBrush's file of local descriptions, which CLIP-T needs, if it is not in the source."""
    base: str | None = None
    """Text-to-image model of the SDEdit baseline. Default: no baseline."""
    clip_model: str = "ViT-B-32-quickgelu"
    """CLIP of the MagicBrush protocol and, according to reimplementations, of Emu Edit's."""
    clip_pretrained: str | None = "openai"
    """open_clip's name of its weights; unused for a folder."""
    dino_model: str | None = "facebook/dino-vits16"
    """DINO of both protocols."""
    repeats: int = field(default=1, metadata=OMIT_IF_EMPTY)
    """How often a benchmark's judge is asked each question; the figures then have a standard deviation."""
    export: bool = field(default=False, metadata=OMIT_IF_EMPTY)
    """Also writes the edited pictures under the names that the benchmark's own script looks for, in `outputs/`."""
    evaluation: EvaluationConfig = EvaluationConfig(resolution=0)
    """How edits are made, how many are swept, and the judge."""

    def __post_init__(self) -> None:
        check(bool(self.models), "models names no editor. Write: ip2p benchmark SOURCE --models RUN/model")
        check_positive(self, "num", "repeats")
        check(
            self.repeats == 1 or self.evaluation.vlm.backend == "server",
            f"repeats is {self.repeats}, but a local judge gives the same answer each time. Leave it out.",
        )
