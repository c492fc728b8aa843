"""The evaluation of a run: its editor beside the input handed back, the untrained model and SDEdit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import PipelineConfig
from ip2p.evaluation import metrics
from ip2p.evaluation.cases import Domain, EditCase, balanced_subset, hold_out_cases, load_domain
from ip2p.evaluation.editors import (
    EditorSource,
    Setting,
    copy_source,
    editor_source,
    sdedit_source,
    trained_model,
    untrained_source,
)
from ip2p.evaluation.measures import ChangeMeasure, Measure, OracleMeasure, TruthMeasure
from ip2p.evaluation.measures.models import ClipMeasure, describe_judge, judge_of, lpips_measures
from ip2p.evaluation.measures.vlm import vlm_measures
from ip2p.evaluation.parts import Part, Work, carry_out, slices
from ip2p.evaluation.sheets import write_sheets

logger = logging.getLogger(__name__)

MAX_UNTRAINED_EDITS = 98
"""The untrained baseline scores next to nothing whatever the number of cases."""


@store.summarised("evaluation")
def evaluate(
    config: PipelineConfig, *, data: str | Path | None = None, progress: Callable[[float], object] = lambda share: None
) -> dict[str, Any]:
    """Edits the held-out cases with the trained editor and its baselines and returns the figures.

    Without a domain the cases are the test split of `evaluation.data`, of `data` or of the run's own dataset, the
    first that is named, judged by CLIP alone. `progress` is told the share of the edits that are done.
    """
    data = config.evaluation.data or data
    domain = load_domain(config.evaluation.domain) if config.evaluation.domain else None
    trained_model(config)
    config = fit_baselines(config)
    cases = hold_out_cases(config, domain, Path(data).expanduser() if data else None)
    folder = store.RunFolder(config.out).evaluation
    if not cases:
        reason = "there are no held-out edits: the dataset has no readable test split and evaluation.domain is not set"
        logger.warning("skipped the evaluation: %s", reason)
        store.write_json(folder / "figures.json", {"skipped": reason})
        return {"skipped": reason}
    work = Work(
        folder=folder,
        knobs=config.evaluation,
        cases=cases,
        editors=run_editors(config),
        parts=plan_parts(config, cases),
        measures=run_measures(config, domain),
        slow_measures=vlm_measures(config.evaluation.vlm, folder),
    )
    done = carry_out(work, progress, _show)
    figures = describe(config, done.records, domain.edit_types() if domain else ())
    figures |= {"seconds": done.seconds, "parts": [part.name for part in work.parts if part.kind == "edit"]}
    store.write_json(folder / "figures.json", figures)
    return figures


def fit_baselines(config: PipelineConfig) -> PipelineConfig:
    """Without SDEdit where the run started from an editor: that draws nothing by itself."""
    from ip2p.models.components import model_index

    if not config.evaluation.sdedit_strengths:
        return config
    if "InstructPix2Pix" not in str(model_index(config.training).get("_class_name")):
        return config
    logger.info("the training started from an editor, so SDEdit is left out: it takes a text-to-image model")
    return replace(config, evaluation=replace(config.evaluation, sdedit_strengths=()))


def run_editors(config: PipelineConfig) -> dict[str, EditorSource]:
    """The run's editor first, then those that show what its figures are worth."""
    knobs, base = config.evaluation, config.training
    return {
        "model": editor_source(str(store.RunFolder(config.out).model), knobs),
        "copy": copy_source(),
        "untrained": untrained_source(base, knobs),
        "sdedit": sdedit_source(base, knobs, knobs.sdedit_guidance_scale),
    }


def run_measures(config: PipelineConfig, domain: Domain | None) -> list[Measure]:
    """The oracle where there is a domain, the judge's CLIP, pixels."""
    oracle = [OracleMeasure(config.evaluation.domain or "", domain)] if domain is not None else []
    judge = ClipMeasure(judge_of(config.evaluation, config.scoring))
    return [*oracle, judge, ChangeMeasure(), TruthMeasure(), *lpips_measures(config.evaluation)]


def plan_parts(config: PipelineConfig, cases: Sequence[EditCase]) -> list[Part]:
    """All parts: the editors, then the sweep and SDEdit on the same few cases, then the grids."""
    knobs = config.evaluation
    usual = Setting(guidance_scale=knobs.guidance_scale, image_guidance_scale=knobs.image_guidance_scale)
    few = balanced_subset(cases, min(MAX_UNTRAINED_EDITS, len(cases)))
    swept = balanced_subset(cases, min(knobs.num_sweep_edits, len(cases)))
    shown = balanced_subset(cases, min(knobs.num_grid_edits, len(cases)))
    everything = list(range(len(cases)))
    parts: list[Part] = []
    for name, some in (("model", everything), ("copy", everything), ("untrained", few)):
        parts += slices(name, "edit", usual, some)
    for scale in knobs.image_guidance_scales:
        setting = Setting(guidance_scale=knobs.guidance_scale, image_guidance_scale=scale)
        parts += slices("model", "sweep", setting, swept)
    for strength in knobs.sdedit_strengths:
        setting = Setting(guidance_scale=knobs.sdedit_guidance_scale, image_guidance_scale=1.0, strength=strength)
        parts += slices("sdedit", "sweep", setting, swept)
    for text in knobs.grid_guidance_scales:
        for image in knobs.grid_image_guidance_scales:
            setting = Setting(guidance_scale=text, image_guidance_scale=image)
            parts += slices("model", "grid", setting, shown)
    return parts


def describe(config: PipelineConfig, records: Sequence[metrics.Record], edit_types: Sequence[str]) -> dict[str, Any]:
    """The run's figures: the editor's own, its baselines', the curves, and tests of the one against the others."""

    def of(model: str, kind: str = "edit") -> list[metrics.Record]:
        return [record for record in records if record["model"] == model and record["kind"] == kind]

    others = {"copy": of("copy"), "untrained": of("untrained")}
    for strength in config.evaluation.sdedit_strengths:
        others[f"sdedit {strength:g}"] = [each for each in of("sdedit", "sweep") if each["strength"] == strength]
    curves = {"model": metrics.curve(of("model", "sweep")), "sdedit": metrics.curve(of("sdedit", "sweep"), "strength")}
    return {
        **metrics.summarise(of("model"), edit_types),
        "judge": describe_judge(config.evaluation, config.scoring),
        "baselines": {name: metrics.summarise(some, edit_types) for name, some in others.items()},
        "paired": {name: metrics.paired(some, of("model")) for name, some in others.items() if some},
        "curve": curves["model"],
        "curves": {name: points for name, points in curves.items() if points},
    }


def _show(work: Work) -> None:
    """Sheets of the edits, and the grids as a table of their own."""
    write_sheets(work.folder / "images", work.cases, [work.edits(part) for part in work.parts if part.kind == "edit"])
    grid = [row for part in work.parts if part.kind == "grid" for row in pq.read_table(work.edits(part)).to_pylist()]
    if grid:
        write_grids(work.folder / "grids.parquet", work.cases, grid)


def write_grids(path: Path, cases: Sequence[EditCase], rows: Sequence[dict[str, Any]]) -> None:
    """A row per case and pair of guidances, with the pictures before and after."""
    import pyarrow as pa

    from ip2p.evaluation.cases import IMAGE_TYPE, encode_png

    wanted = ("case", "guidance_scale", "image_guidance_scale")
    table = pa.table({name: [row[name] for row in rows] for name in wanted})
    table = table.append_column("edit_prompt", pa.array([cases[row["case"]].edit_prompt for row in rows]))
    before = [{"bytes": encode_png(cases[row["case"]].original_image), "path": None} for row in rows]
    table = table.append_column("original_image", pa.array(before, IMAGE_TYPE))
    table = table.append_column("edited_image", pa.array([row["edited_image"] for row in rows], IMAGE_TYPE))
    store.write_shard(path, table, fingerprint="", seconds=0.0)
