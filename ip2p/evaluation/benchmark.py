"""Compares editors on edits from elsewhere, by a published protocol."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ip2p import store
from ip2p.config import BenchmarkConfig, ScoringConfig, TrainingConfig, to_dict
from ip2p.evaluation import metrics
from ip2p.evaluation.benchmark_cases import Layout, read_benchmark
from ip2p.evaluation.cases import EditCase
from ip2p.evaluation.editors import EditorSource, Setting, copy_source, editor_source, sdedit_source
from ip2p.evaluation.measures import Column, Setup, columns, set_up_measures
from ip2p.evaluation.parts import Part, Plan, edit_and_measure, session_slices, slices

logger = logging.getLogger(__name__)


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Edits and measures what is missing in `config.out`, writes the figures to its figures.json and returns them.

    ValueError if the source or a model cannot be found.
    """
    source = read_benchmark(
        config.source, split=config.split, revision=config.revision, num=config.num, captions=config.captions
    )
    protocol = protocol_of(config, source.layout)
    logger.info("%d edits, protocol %s", len(source.cases), protocol)
    names = short_names(config.models)
    plan = Plan(
        folder=config.out,
        knobs=config.evaluation,
        cases=source.cases,
        editors=_editors(config, names),
        parts=plan_benchmark(config, protocol, names, source.cases),
        measures=set_up_measures(_measure_setup(config)),
    )
    results = edit_and_measure(plan)
    figures = describe_benchmark(config, protocol, names, results.records)
    figures |= {"n": len(source.cases), "seconds": results.seconds}
    store.write_json(config.out / "figures.json", figures)
    return figures


def _measure_setup(config: BenchmarkConfig) -> Setup:
    """The same for all protocols: what a case has no truth for is left out of its figures."""
    knobs = config.evaluation
    clip = ScoringConfig(clip_model=config.clip_model, clip_pretrained=config.clip_pretrained, device=knobs.device)
    return Setup(knobs=knobs, clip=clip, folder=config.out, dino_model=config.dino_model)


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Maps short names to the models, each with as much of its path as makes it unique."""
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
    """Returns the folder of a run's model if the name is a run, else the name itself."""
    inside = Path(model).expanduser() / "model"
    return str(inside) if (inside / "model_index.json").is_file() else model


def plan_benchmark(
    config: BenchmarkConfig, protocol: str, names: Iterable[str], cases: Sequence[EditCase]
) -> list[Part]:
    """Plans every editor on every case; sessions as chains for MagicBrush; the sweeps for the curve."""
    knobs, names, all_cases = config.evaluation, list(names), list(range(len(cases)))
    usual = Setting(guidance_scale=knobs.guidance_scale, image_guidance_scale=knobs.image_guidance_scale)
    parts: list[Part] = []
    for name in (*names, "copy"):
        parts += slices(name, "edit", usual, all_cases)
        if protocol == "magicbrush":
            parts += session_slices(name, usual, cases)
    for name in names if protocol == "curve" else ():
        for scale in knobs.image_guidance_scales:
            setting = Setting(guidance_scale=knobs.guidance_scale, image_guidance_scale=scale)
            parts += slices(name, "sweep", setting, all_cases)
    for strength in knobs.sdedit_strengths if config.base else ():
        setting = Setting(guidance_scale=knobs.sdedit_guidance_scale, image_guidance_scale=1.0, strength=strength)
        parts += slices("sdedit", "sweep", setting, all_cases)
    return parts


def describe_benchmark(
    config: BenchmarkConfig, protocol: str, names: dict[str, str], records: Sequence[metrics.Record]
) -> dict[str, Any]:
    """Each editor's figures over all edits, at the end of each session, and along its curve; the others against the
    first, case by case."""

    def select(model: str, kind: str) -> list[metrics.Record]:
        return [record for record in records if record["model"] == model and record["kind"] == kind]

    editors = {name: _describe_editor(select(name, "edit"), select(name, "chain")) for name in (*names, "copy")}
    sdedit = select("sdedit", "sweep")
    for strength in config.evaluation.sdedit_strengths if config.base else ():
        at_strength = [record for record in sdedit if record["strength"] == strength]
        editors[f"sdedit {strength:g}"] = _describe_editor(at_strength, ())
    curves = {name: metrics.curve(select(name, "sweep")) for name in names}
    curves["sdedit"] = metrics.curve(sdedit, "strength")
    compared, (first, *others) = [column.name for column in protocol_columns(protocol)], names
    against = {name: metrics.differences(select(first, "edit"), select(name, "edit"), compared) for name in others}
    return {
        "protocol": protocol,
        "models": names,
        "settings": to_dict(config),
        "editors": editors,
        "curves": {name: points for name, points in curves.items() if points},
        "against_first": against,
    }


def _describe_editor(single: Sequence[metrics.Record], chained: Sequence[metrics.Record]) -> dict[str, Any]:
    last = [record for record in chained if record["is_last"]]
    return {"single": metrics.summarise(single), "final": metrics.summarise(last) if last else None}


@dataclass(frozen=True, slots=True)
class Protocol:
    """A way of comparing editors that others have published, or ours."""

    words: str
    published: Mapping[str, str]
    """Columns that it reports, in its order, with its own short titles; "" for the measure's title."""


PROTOCOLS = {
    "magicbrush": Protocol(
        "MagicBrush's protocol: against the target, edit by edit, and at the end of each session",
        {"l1": "L1", "l2": "L2", "clip_target": "CLIP-I", "dino_target": "DINO", "clip_edited": "CLIP-T"},
    ),
    "emu_edit": Protocol(
        "Emu Edit's protocol: against the input and the captions, which rewards doing nothing",
        {
            "clip_direction": "CLIP dir",
            "clip_image": "CLIP im",
            "clip_edited": "CLIP out",
            "l1_input": "L1",
            "dino_input": "DINO",
        },
    ),
    "curve": Protocol(
        "the paper's curve: what is kept against what is changed, over the image guidance",
        {"clip_direction": "", "clip_image": "", "clip_edited": ""},
    ),
    "pictures": Protocol(
        "pictures with instructions, by everything that they have a truth for",
        {"clip_direction": "", "clip_image": "", "clip_edited": "", "l1": ""},
    ),
}


def protocol_columns(protocol: str) -> list[Column]:
    """The columns that a protocol reports, then those that are shown everywhere."""
    published = PROTOCOLS[protocol].published
    own = [replace(columns()[name], title=title or columns()[name].title) for name, title in published.items()]
    beside = [column for column in columns().values() if column.shown == "everywhere" and column.name not in published]
    return own + beside


def known_columns(protocol: str, editors: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """The protocol's columns that one of the editors has a figure for."""
    return [
        column
        for column in protocol_columns(protocol)
        if any(figures["single"].get(column.name) is not None for figures in editors.values())
    ]


_PROTOCOL_OF_LAYOUT: dict[Layout, str] = {
    "magicbrush": "magicbrush",
    "emu_edit": "emu_edit",
    "pairs": "curve",
    "pictures": "pictures",
}


def protocol_of(config: BenchmarkConfig, layout: Layout) -> str:
    """Returns the protocol that the config names, or that of the layout. ValueError if the layout lacks its targets."""
    protocol = _PROTOCOL_OF_LAYOUT[layout] if config.protocol == "auto" else config.protocol
    if protocol == "magicbrush" and layout not in ("magicbrush", "pairs"):
        raise ValueError(
            f"the protocol magicbrush compares with targets, which {config.source} has none of. Leave --protocol out."
        )
    return protocol
