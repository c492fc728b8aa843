"""Knobs of a benchmark: editors beside each other on edits that none of them was made for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ip2p.config.checks import check, check_positive
from ip2p.config.evaluation import EvaluationConfig

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
