"""Compares editors on edits from elsewhere, by a published protocol."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ip2p import store
from ip2p.config import BenchmarkConfig, EvaluationConfig, ScoringConfig, TrainingConfig, to_dict
from ip2p.evaluation.benchmark_cases import Layout, read_benchmark
from ip2p.evaluation.cases import EditCase
from ip2p.evaluation.editors import Setting, copy_source, editor_source, sdedit_source
from ip2p.evaluation.measures import Column, Setup, columns, set_up_measures
from ip2p.evaluation.metrics import Figures, Record, curve, differences, select, summarise
from ip2p.evaluation.parts import Part, Plan, edit_and_measure, sdedit_slices, session_slices, slices, sweep_slices

logger = logging.getLogger(__name__)


def benchmark(config: BenchmarkConfig) -> Figures:
    """Edits and measures what is missing in `config.out`, writes the figures to its figures.json and returns them.

    ValueError if the source or a model cannot be found.
    """
    source = read_benchmark(
        config.source, split=config.split, revision=config.revision, num=config.num, captions=config.captions
    )
    protocol = protocol_of(config, source.layout)
    logger.info("%d edits, protocol %s", len(source.cases), protocol)
    knobs, names = config.evaluation, short_names(config.models)
    editors = {name: editor_source(_model_in(model), knobs, config.out) for name, model in names.items()}
    editors["copy"] = copy_source()
    if config.base:
        base = TrainingConfig(pretrained_model_name_or_path=config.base)
        editors["sdedit"] = sdedit_source(base, knobs, config.out)
    else:
        knobs = replace(knobs, sdedit_strengths=())
    clip = ScoringConfig(clip_model=config.clip_model, clip_pretrained=config.clip_pretrained, device=knobs.device)
    setup = Setup(knobs=knobs, clip=clip, folder=config.out, notes=config.out, dino_model=config.dino_model)
    plan = Plan(
        folder=config.out,
        knobs=knobs,
        cases=source.cases,
        editors=editors,
        parts=plan_benchmark(knobs, protocol, list(names), source.cases),
        # the same for every protocol: figures leave out cases without the ground truth
        measures=set_up_measures(setup),
    )
    records, seconds = edit_and_measure(plan)
    figures = {
        "protocol": protocol,
        "models": names,
        "settings": to_dict(config),
        **describe_benchmark(records, protocol, list(names), knobs.sdedit_strengths),
        "n": len(source.cases),
        "seconds": seconds,
    }
    store.write_json(config.out / "figures.json", figures)
    return figures


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Maps short names to the models: the last parts of each path, as many as make all names differ."""
    paths = [Path(model).parts for model in models]
    paths = [path[:-1] if path[-1] == "model" and len(path) > 1 else path for path in paths]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["-".join(path[-depth:]).replace("/", "") for path in paths]
        if len(set(names)) == len(names) and not {"copy", "sdedit"} & set(names):
            return dict(zip(names, models, strict=True))
    raise ValueError(f"two models are the same: {', '.join(models)}. Name each once.")


def _model_in(model: str) -> str:
    """Returns the folder of a run's model if the name is a run, else the name itself."""
    inside = Path(model).expanduser() / "model"
    return str(inside) if (inside / "model_index.json").is_file() else model


def plan_benchmark(
    knobs: EvaluationConfig, protocol: str, names: Sequence[str], cases: Sequence[EditCase]
) -> list[Part]:
    """Plans every editor on every case, sessions as chains for MagicBrush, and the sweeps for the curve."""
    all_cases = list(range(len(cases)))
    usual = Setting(guidance_scale=knobs.guidance_scale, image_guidance_scale=knobs.image_guidance_scale)
    parts: list[Part] = []
    for name in (*names, "copy"):
        parts += slices(name, "edit", usual, all_cases)
        if protocol == "magicbrush":
            parts += session_slices(name, usual, cases)
    for name in names if protocol == "curve" else ():
        parts += sweep_slices(name, knobs, all_cases)
    return [*parts, *sdedit_slices(knobs, all_cases)]


def describe_benchmark(
    records: Sequence[Record], protocol: str, names: Sequence[str], strengths: Sequence[float]
) -> Figures:
    """Computes each editor's figures over all edits, at the end of each session, and along its curve.

    The editors after the first are compared with it case by case.
    """
    single = {name: select(records, model=name, kind="edit") for name in (*names, "copy")}
    final = {name: select(records, model=name, kind="chain", is_last=True) for name in single}
    sdedit = select(records, model="sdedit", kind="sweep")
    single |= {f"sdedit {strength:g}": select(sdedit, strength=strength) for strength in strengths}
    curves = {name: curve(select(records, model=name, kind="sweep")) for name in names}
    curves["sdedit"] = curve(sdedit, "strength")
    compared, (first, *others) = [column.name for column in protocol_columns(protocol)], names
    return {
        "editors": {
            name: {"single": summarise(edits), "final": summarise(final[name]) if final.get(name) else None}
            for name, edits in single.items()
        },
        "curves": {name: points for name, points in curves.items() if points},
        "against_first": {name: differences(single[first], single[name], compared) for name in others},
    }


@dataclass(frozen=True, slots=True)
class Protocol:
    """A published way of comparing editors, or ours."""

    layout: Layout
    """Layout of the data for which it is the default."""
    words: str
    published: Mapping[str, str]
    """Columns that it reports, in its order, with its own short titles; "" for the measure's title."""


PROTOCOLS = {
    "magicbrush": Protocol(
        "magicbrush",
        "MagicBrush's protocol: against the target, edit by edit, and at the end of each session",
        {"l1": "L1", "l2": "L2", "clip_target": "CLIP-I", "dino_target": "DINO", "clip_edited": "CLIP-T"},
    ),
    "emu_edit": Protocol(
        "emu_edit",
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
        "pairs",
        "the paper's curve over the image guidance: how much is preserved against how much is changed",
        {"clip_direction": "", "clip_image": "", "clip_edited": ""},
    ),
    "pictures": Protocol(
        "pictures",
        "pictures with instructions: every measure that their ground truth allows",
        {"clip_direction": "", "clip_image": "", "clip_edited": "", "l1": ""},
    ),
}


def protocol_columns(protocol: str) -> list[Column]:
    """Returns the columns that a protocol reports, then those that every table shows."""
    published = PROTOCOLS[protocol].published
    own = [replace(columns()[name], title=title or columns()[name].title) for name, title in published.items()]
    beside = [column for column in columns().values() if column.shown == "everywhere" and column.name not in published]
    return own + beside


def known_columns(protocol: str, editors: Mapping[str, Mapping[str, Figures]]) -> list[Column]:
    """Returns the protocol's columns that one of the editors has a figure for."""
    return [
        column
        for column in protocol_columns(protocol)
        if any(figures["single"].get(column.name) is not None for figures in editors.values())
    ]


def protocol_of(config: BenchmarkConfig, layout: Layout) -> str:
    """Returns the protocol that is set, or the layout's. ValueError if the data lack the targets that it needs."""
    if config.protocol == "auto":
        return next(name for name, protocol in PROTOCOLS.items() if protocol.layout == layout)
    if config.protocol == "magicbrush" and layout not in ("magicbrush", "pairs"):
        raise ValueError(
            f"the protocol magicbrush compares with target images, which {config.source} lacks. Leave --protocol out."
        )
    return config.protocol
