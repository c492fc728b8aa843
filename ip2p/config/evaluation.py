"""Knobs of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ip2p.config.fields import check, check_positive
from ip2p.config.prompts import ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class VlmConfig:
    """A vision-language model that looks at each edit and scores it from 0 to 10, in the manner of VIEScore."""

    model: str | None = None
    """Its name on the server, or a folder or hub id; none by default, and no such judge."""
    backend: Literal["server", "local"] = "server"
    """An OpenAI-compatible endpoint, or transformers in this process."""
    server: ServerConfig = ServerConfig()
    """The endpoint."""
    revision: str | None = None
    """Branch, tag or commit of a local one."""
    device: str = "auto"
    """Where a local one runs."""
    dtype: str = "auto"
    """Its precision."""
    max_new_tokens: int = 300
    """Longest answer."""

    def __post_init__(self) -> None:
        check_positive(self, "max_new_tokens")
        asks = self.model is not None and self.backend == "server"
        check(
            not asks or bool(self.server.base_url),
            "evaluation.vlm.server.base_url is not set. Give an address such as http://127.0.0.1:8000/v1.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """How well the editor edits and how much it keeps."""

    domain: str | None = None
    """`module:Class` of a domain that draws held-out edits and judges them; else the test split and CLIP alone."""
    data: str | None = None
    """Dataset folder whose test split holds the held-out edits where there is no domain; else what was trained on."""
    num_edits: int = 490
    """Held-out edits for the main figures."""
    num_sweep_edits: int = 70
    """Edits for the sweep of the image guidance, and for SDEdit."""
    image_guidance_scales: tuple[float, ...] = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
    """Values of the sweep (paper, figure 8)."""
    guidance_scale: float = 7.5
    """Text guidance."""
    image_guidance_scale: float = 1.5
    """Image guidance outside the sweep."""
    sdedit_strengths: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    """Strengths of the baseline SDEdit, which is told the edited caption (paper, figure 8); none leaves it out."""
    sdedit_guidance_scale: float = 7.5
    """Its text guidance."""
    num_grid_edits: int = 4
    """Edits shown at every pair of the two guidances below."""
    grid_guidance_scales: tuple[float, ...] = (3.0, 7.5, 12.0)
    """Text guidances of the grid."""
    grid_image_guidance_scales: tuple[float, ...] = (1.0, 1.5, 2.0)
    """Image guidances of the grid."""
    judge_clip_model: str | None = None
    """The CLIP that judges edits, named like `scoring.clip_model`; better another than the filter's, which pairs were
    chosen by. The filter's own where none is named, which the report says."""
    judge_clip_pretrained: str | None = None
    """open_clip's name of the judge's weights; unused for a folder."""
    vlm: VlmConfig = VlmConfig()
    """A vision-language judge; its answers are kept."""
    lpips: Literal["alex", "vgg", "squeeze"] | None = None
    """Backbone of LPIPS outside the area that an edit may change, where that is known; wants the package lpips."""
    num_inference_steps: int = 20
    """Denoising steps."""
    resolution: int | None = None
    """Pixels on the short side during an edit: the picture's own by default, the model's own if it is 0."""
    batch_size: int = 32
    """Edits per batch; the result does not depend on it."""
    device: str = "auto"
    """Where to edit."""
    seed: int = 1
    """Seed of the held-out edits and of the noise."""

    def __post_init__(self) -> None:
        check_positive(self, "num_edits", "num_sweep_edits", "num_inference_steps", "batch_size")
        for strength in self.sdedit_strengths:
            check(
                0 < strength <= 1,
                f"sdedit_strengths must lie above 0 and up to 1, got {strength:g}. The paper's are 0.3 to 0.9.",
            )


Protocol = Literal["auto", "magicbrush", "emu_edit", "curve", "pictures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkConfig:
    """Editors beside each other on the same edits, seeds and settings."""

    source: str
    """MagicBrush or Emu Edit's test set (folder or hub id), a dataset like our own, a folder or .jsonl of pictures, or
    `photographs`, the two of scikit-learn."""
    models: tuple[str, ...] = ()
    """Editors: runs, model folders or hub ids; the first is the one that the others are tested against."""
    out: Path = Path("benchmarks/default")
    """Folder for pictures, figures and the page."""
    protocol: Protocol = "auto"
    """What is measured: as MagicBrush or Emu Edit do, the paper's curve over the image guidance, or all that the
    pictures have a truth for; by the source's columns if it is not said."""
    split: str = "test"
    """Split of a dataset. The two hub repositories of Emu Edit name their splits the other way round."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    num: int | None = None
    """At most so many edits, in turns from every edit type, sessions whole; all by default."""
    captions: Path | None = None
    """MagicBrush's file of local descriptions, where it does not lie in the source; CLIP-T needs it."""
    base: str | None = None
    """Text-to-image model for the baseline SDEdit; left out where none is named."""
    clip_model: str = "ViT-B-32-quickgelu"
    """The CLIP of MagicBrush's protocol and, by those who rebuilt it, of Emu Edit's."""
    clip_pretrained: str | None = "openai"
    """open_clip's name of its weights; unused for a folder."""
    dino_model: str | None = "facebook/dino-vits16"
    """Their DINO."""
    evaluation: EvaluationConfig = EvaluationConfig(resolution=0)
    """How edits are made and how many are swept."""

    def __post_init__(self) -> None:
        check(bool(self.models), "models names no editor. Write: ip2p benchmark SOURCE --models RUN/model")
        check_positive(self, "num")
