"""Compares editors on edits from elsewhere, by a published protocol."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import BenchmarkConfig, ImageFormat, ScoringConfig, TrainingConfig, VlmConfig, to_dict
from ip2p.evaluation.benchmark_cases import read_benchmark
from ip2p.evaluation.benchmarks import Benchmark, benchmarks
from ip2p.evaluation.editors import copy_source, editor_source, sdedit_source
from ip2p.evaluation.judged import aggregate, describe_answers, describe_judge, set_up_judge
from ip2p.evaluation.measures import Column, Setup, columns, set_up_measures
from ip2p.evaluation.metrics import Figures, Record, curve, differences, select, summarise
from ip2p.evaluation.parts import Plan, edit_and_measure, sdedit_slices
from ip2p.images import encode_image, open_pixels

logger = logging.getLogger(__name__)

EXPORT_QUALITY = 95
"""Quality of the outputs that a benchmark's own script reads as JPEG."""


def benchmark(config: BenchmarkConfig) -> Figures:
    """Edits and measures what is missing in `config.out`, writes the figures to its figures.json and returns them.

    ValueError if the source, a model or the protocol cannot be found.
    """
    protocols = ("auto", *benchmarks())
    if config.protocol not in protocols:
        raise ValueError(f"protocol is {config.protocol!r}, which is not known. Choose from: {', '.join(protocols)}.")
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
    chosen = benchmarks()[protocol]
    judge = set_up_judge(chosen, knobs.vlm, source.cases, config.repeats, config.out)
    general = replace(knobs, vlm=VlmConfig()) if chosen.questions else knobs  # no judge is asked twice
    setup = Setup(knobs=general, clip=clip, folder=config.out, notes=config.out, dino_model=config.dino_model)
    plan = Plan(
        folder=config.out,
        knobs=knobs,
        cases=source.cases,
        editors=editors,
        parts=[
            *chosen.plan(knobs, list(names), source.cases),
            *sdedit_slices(knobs, range(len(source.cases))),
        ],
        # the same for every protocol: figures leave out cases without the ground truth
        measures=[*set_up_measures(setup), *([judge] if judge else [])],
    )
    records, seconds = edit_and_measure(plan)
    if config.export:
        export_outputs(plan, chosen, list(names))
    figures = {
        "protocol": protocol,
        "models": names,
        "settings": to_dict(config),
        **describe_benchmark(records, protocol, list(names), knobs.sdedit_strengths),
        "n": len(source.cases),
        "seconds": seconds,
    }
    if judge:
        figures["judge"] = describe_judge(judge)
        for name in (*names, "copy"):
            edits = select(records, model=name, kind="edit")
            published = aggregate(chosen, edits, source.cases, config.repeats)
            figures["editors"][name] |= {"published": published, "answers": describe_answers(edits)}
    store.write_json(config.out / "figures.json", figures)
    return figures


def export_outputs(plan: Plan, chosen: Benchmark, names: Sequence[str]) -> None:
    """Writes the editors' pictures to `outputs/EDITOR/`, under the names that the benchmark's own script looks for."""
    for part in plan.parts:
        if part.kind != "edit" or part.model not in names:
            continue
        folder = plan.folder / "outputs" / part.model
        for batch in pq.ParquetFile(plan.edits(part)).iter_batches(batch_size=plan.knobs.batch_size):
            for row in batch.to_pylist():
                case, edited = plan.cases[row["case"]], open_pixels(row["edited_image"]["bytes"])
                for name, pixels in chosen.outputs(case, edited).items():
                    image_format: ImageFormat = "jpeg" if name.endswith(".jpg") else "png"
                    store.write_bytes(folder / name, encode_image(pixels, image_format, EXPORT_QUALITY))


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
    own = benchmarks()[protocol].columns
    return {
        "editors": {
            name: {
                "single": summarise(edits, further=own),
                "final": summarise(final[name]) if final.get(name) else None,
            }
            for name, edits in single.items()
        },
        "curves": {name: points for name, points in curves.items() if points},
        "against_first": {name: differences(single[first], single[name], compared) for name in others},
    }


def protocol_columns(protocol: str) -> list[Column]:
    """Returns the columns that a protocol reports, then those that every table shows."""
    benchmark = benchmarks()[protocol]
    available = columns() | {column.name: column for column in benchmark.columns}
    own = [
        replace(available[name], title=title or available[name].title) for name, title in benchmark.published.items()
    ]
    shared = [column for column in available.values() if column.shown_in == "everywhere"]
    return own + [column for column in shared if column.name not in benchmark.published]


def known_columns(protocol: str, editors: Mapping[str, Mapping[str, Figures]]) -> list[Column]:
    """Returns the protocol's columns that one of the editors has a figure for."""
    return [
        column
        for column in protocol_columns(protocol)
        if any(figures["single"].get(column.name) is not None for figures in editors.values())
    ]


def protocol_of(config: BenchmarkConfig, layout: str) -> str:
    """Returns the protocol that is set, or the layout's. ValueError if the data lack what it needs."""
    name = layout if config.protocol == "auto" else config.protocol
    benchmark = benchmarks()[name]
    if benchmark.takes is not None and layout not in (name, *benchmark.takes):
        raise ValueError(f"the protocol {name} {benchmark.needs}, which {config.source} lacks. Leave --protocol out.")
    return name
