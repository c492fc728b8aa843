"""Editors beside each other on edits from elsewhere, by a published protocol."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ip2p import store
from ip2p.config import BenchmarkConfig, ScoringConfig, TrainingConfig, to_dict
from ip2p.evaluation import metrics
from ip2p.evaluation.benchmark_cases import Layout, read_benchmark
from ip2p.evaluation.cases import EditCase
from ip2p.evaluation.editors import EditorSource, Setting, copy_source, editor_source, sdedit_source
from ip2p.evaluation.measures import ChangeMeasure, Measure, TruthMeasure
from ip2p.evaluation.measures.models import ClipMeasure, DinoMeasure, lpips_measures
from ip2p.evaluation.measures.vlm import vlm_measures
from ip2p.evaluation.parts import Part, Work, carry_out, session_slices, slices

logger = logging.getLogger(__name__)


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Edits and measures what is missing in `config.out` and returns the figures, which lie in its figures.json.

    ValueError where the source or a model is none.
    """
    found = read_benchmark(
        config.source, split=config.split, revision=config.revision, num=config.num, captions=config.captions
    )
    protocol = protocol_of(config, found.layout)
    logger.info("%d edits, protocol %s", len(found.cases), protocol)
    names = tell_apart(config.models)
    work = Work(
        folder=config.out,
        knobs=config.evaluation,
        cases=found.cases,
        editors=_editors(config, names),
        parts=plan_benchmark(config, protocol, names, found.cases),
        measures=protocol_measures(config),
        slow_measures=vlm_measures(config.evaluation.vlm, config.out),
    )
    done = carry_out(work)
    figures = describe_benchmark(config, protocol, names, done.records)
    figures |= {"n": len(found.cases), "seconds": done.seconds}
    store.write_json(config.out / "figures.json", figures)
    return figures


def tell_apart(models: Sequence[str]) -> dict[str, str]:
    """Short names of models, with as much of their paths as tells them from one another, to the models."""
    paths = [Path(model).parts for model in models]
    paths = [path[:-1] if path[-1] == "model" and len(path) > 1 else path for path in paths]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["-".join(path[-depth:]).replace("/", "") for path in paths]
        if len(set(names)) == len(names) and not {"copy", "sdedit"} & set(names):
            return dict(zip(names, models, strict=True))
    raise ValueError(f"two models are the same: {', '.join(models)}. Name each once.")


def _editors(config: BenchmarkConfig, names: dict[str, str]) -> dict[str, EditorSource]:
    editors = {name: editor_source(str(_model_in(model)), config.evaluation) for name, model in names.items()}
    editors["copy"] = copy_source()
    if config.base:
        base = TrainingConfig(pretrained_model_name_or_path=config.base)
        editors["sdedit"] = sdedit_source(base, config.evaluation, config.evaluation.sdedit_guidance_scale)
    return editors


def _model_in(model: str) -> str:
    """A run's model where a run is named."""
    inside = Path(model).expanduser() / "model"
    return str(inside) if (inside / "model_index.json").is_file() else model


def plan_benchmark(
    config: BenchmarkConfig, protocol: str, names: Iterable[str], cases: Sequence[EditCase]
) -> list[Part]:
    """Every editor on every case; sessions as chains for MagicBrush; the sweeps for the curve."""
    knobs, names, everything = config.evaluation, list(names), list(range(len(cases)))
    usual = Setting(guidance_scale=knobs.guidance_scale, image_guidance_scale=knobs.image_guidance_scale)
    parts: list[Part] = []
    for name in (*names, "copy"):
        parts += slices(name, "edit", usual, everything)
        if protocol == "magicbrush":
            parts += session_slices(name, usual, cases)
    for name in names if protocol == "curve" else ():
        for scale in knobs.image_guidance_scales:
            setting = Setting(guidance_scale=knobs.guidance_scale, image_guidance_scale=scale)
            parts += slices(name, "sweep", setting, everything)
    for strength in knobs.sdedit_strengths if config.base else ():
        setting = Setting(guidance_scale=knobs.sdedit_guidance_scale, image_guidance_scale=1.0, strength=strength)
        parts += slices("sdedit", "sweep", setting, everything)
    return parts


def describe_benchmark(
    config: BenchmarkConfig, protocol: str, names: dict[str, str], records: Sequence[metrics.Record]
) -> dict[str, Any]:
    """Each editor's figures over all edits, at the end of each session, and along its curve; the others against the
    first, case by case."""

    def of(model: str, kind: str) -> list[metrics.Record]:
        return [record for record in records if record["model"] == model and record["kind"] == kind]

    editors: dict[str, Any] = {name: _described(of(name, "edit"), of(name, "chain")) for name in (*names, "copy")}
    for strength in config.evaluation.sdedit_strengths if config.base else ():
        some = [record for record in of("sdedit", "sweep") if record["strength"] == strength]
        editors[f"sdedit {strength:g}"] = _described(some, ())
    curves = {name: metrics.curve(of(name, "sweep")) for name in names}
    curves["sdedit"] = metrics.curve(of("sdedit", "sweep"), "strength")
    columns, (first, *others) = [column.name for column in COLUMNS[protocol]], names
    against = {name: metrics.differences(of(first, "edit"), of(name, "edit"), columns) for name in others}
    return {
        "protocol": protocol,
        "models": names,
        "settings": to_dict(config),
        "editors": editors,
        "curves": {name: points for name, points in curves.items() if points},
        "against_first": against,
    }


def _described(single: Sequence[metrics.Record], chained: Sequence[metrics.Record]) -> dict[str, Any]:
    last = [record for record in chained if record["is_last"]]
    return {"single": metrics.summarise(single), "final": metrics.summarise(last) if last else None}


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
