"""What each protocol measures, in which words, and which way is better.

MagicBrush (Zhang et al., 2023) compares with a target, edit by edit and at the end of each session; Emu Edit (Sheynin
et al., 2023) has no targets and compares with the input and the captions, which rewards doing nothing: so the input
handed back stands beside every model, and the share of edits that change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ip2p.config import BenchmarkConfig, ScoringConfig
from ip2p.evaluation.measures import ChangeMeasure, Measure, TruthMeasure
from ip2p.evaluation.similarities import ClipMeasure, DinoMeasure, lpips_measures
from ip2p.evaluation.sources import Layout


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of a protocol's table."""

    name: str
    title: str
    more_is_better: bool | None

    @property
    def heading(self) -> str:
        """The title with an arrow that says which way is better."""
        return self.title + {True: " ↑", False: " ↓", None: ""}[self.more_is_better]


_NO_OP = Column("no_op", "no change", False)
_DIRECTION = Column("clip_direction", "CLIP direction", True)
_KEPT = (Column("ssim_kept", "SSIM outside mask", True), Column("lpips_kept", "LPIPS outside mask", False))
COLUMNS: dict[str, tuple[Column, ...]] = {
    "magicbrush": (
        Column("l1", "L1", False),
        Column("l2", "L2", False),
        Column("clip_target", "CLIP-I", True),
        Column("dino_target", "DINO", True),
        Column("clip_edited", "CLIP-T", True),
        *_KEPT,
        _NO_OP,
    ),
    "emu_edit": (
        Column("clip_direction", "CLIP dir", True),
        Column("clip_image", "CLIP im", True),
        Column("clip_edited", "CLIP out", True),
        Column("l1_input", "L1", False),
        Column("dino_input", "DINO", True),
        _NO_OP,
    ),
    "curve": (_DIRECTION, Column("clip_image", "CLIP image", True), Column("clip_edited", "CLIP edited", True), _NO_OP),
    "pictures": (
        _DIRECTION,
        Column("clip_image", "CLIP image", True),
        Column("clip_edited", "CLIP edited", True),
        Column("l1", "L1 to target", False),
        *_KEPT,
        _NO_OP,
    ),
}
"""By protocol. L1 and L2 are of a range of 1; L2 is the squared one."""

_USUAL: dict[Layout, str] = {
    "magicbrush": "magicbrush",
    "emu_edit": "emu_edit",
    "pairs": "curve",
    "pictures": "pictures",
}


def known_columns(protocol: str, editors: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """The protocol's columns that one of the editors has a figure for."""
    columns = COLUMNS[protocol]
    return [
        column for column in columns if any(each["single"].get(column.name) is not None for each in editors.values())
    ]


def protocol_of(config: BenchmarkConfig, layout: Layout) -> str:
    """The one that is asked for, or that of the layout. ValueError where the layout lacks what it needs."""
    wanted = _USUAL.get(layout, layout) if config.protocol == "auto" else config.protocol
    if wanted == "magicbrush" and layout not in ("magicbrush", "pairs"):
        raise ValueError(f"the protocol magicbrush compares with targets, which {config.source} has none of.")
    return wanted


def protocol_measures(config: BenchmarkConfig) -> list[Measure]:
    """The same for all: what a case has no truth for is left out of its figures."""
    knobs = config.evaluation
    scoring = ScoringConfig(clip_model=config.clip_model, clip_pretrained=config.clip_pretrained, device=knobs.device)
    measures: list[Measure] = [ClipMeasure(scoring), ChangeMeasure(), TruthMeasure(), *lpips_measures(knobs)]
    if config.dino_model:
        measures.append(DinoMeasure(config.dino_model, knobs.device, knobs.batch_size))
    return measures
