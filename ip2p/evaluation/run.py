"""The evaluation of a run: its editor beside the input handed back, the untrained model and SDEdit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ip2p import store
from ip2p.config import PipelineConfig
from ip2p.evaluation import metrics
from ip2p.evaluation.cases import EditCase, balanced_subset, hold_out_cases, load_domain
from ip2p.evaluation.editors import (
    EditorSource,
    Setting,
    copy_source,
    editor_source,
    sdedit_source,
    trained_model,
    untrained_source,
)
from ip2p.evaluation.measures import Setup, set_up_measures
from ip2p.evaluation.measures.clip import describe_judge, judge_of
from ip2p.evaluation.parts import Part, Plan, edit_and_measure, slices

logger = logging.getLogger(__name__)

MAX_UNTRAINED_EDITS = 98
"""The untrained baseline scores next to nothing whatever the number of cases."""


@store.summarised("evaluation")
def evaluate(
    config: PipelineConfig, *, data: str | Path | None = None, progress: Callable[[float], object] = lambda share: None
) -> dict[str, Any]:
    """Edits the held-out cases with the trained editor and its baselines and returns the figures.

    If there is no domain, the cases are the test split of `evaluation.data`, of `data` or of the run's own dataset, the
    first that is named, judged by CLIP alone. `progress` gets the share of the edits that are done.
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
    judge = judge_of(config.evaluation, config.scoring)
    plan = Plan(
        folder=folder,
        knobs=config.evaluation,
        cases=cases,
        editors=run_editors(config),
        parts=plan_parts(config, cases),
        measures=set_up_measures(Setup(knobs=config.evaluation, clip=judge, folder=folder, domain=domain)),
    )
    results = edit_and_measure(plan, progress)
    figures = describe(config, results.records, domain.edit_types() if domain else ())
    figures |= {"seconds": results.seconds, "parts": [part.name for part in plan.parts if part.kind == "edit"]}
    store.write_json(folder / "figures.json", figures)
    return figures


def fit_baselines(config: PipelineConfig) -> PipelineConfig:
    """Leaves SDEdit out if the run started from an editor, which draws nothing by itself."""
    from ip2p.models.components import model_index

    if not config.evaluation.sdedit_strengths:
        return config
    if "InstructPix2Pix" not in str(model_index(config.training).get("_class_name")):
        return config
    logger.info("the training started from an editor, so SDEdit is left out: it takes a text-to-image model")
    return replace(config, evaluation=replace(config.evaluation, sdedit_strengths=()))


def run_editors(config: PipelineConfig) -> dict[str, EditorSource]:
    """Returns the run's editor first, then the baselines that show what its figures are worth."""
    knobs, base = config.evaluation, config.training
    return {
        "model": editor_source(str(store.RunFolder(config.out).model), knobs),
        "copy": copy_source(),
        "untrained": untrained_source(base, knobs),
        "sdedit": sdedit_source(base, knobs, knobs.sdedit_guidance_scale),
    }


def plan_parts(config: PipelineConfig, cases: Sequence[EditCase]) -> list[Part]:
    """Plans the editors, then the sweep and SDEdit on the same few cases, then the grids."""
    knobs = config.evaluation
    usual = Setting(guidance_scale=knobs.guidance_scale, image_guidance_scale=knobs.image_guidance_scale)
    few = balanced_subset(cases, min(MAX_UNTRAINED_EDITS, len(cases)))
    swept = balanced_subset(cases, min(knobs.num_sweep_edits, len(cases)))
    shown = balanced_subset(cases, min(knobs.num_grid_edits, len(cases)))
    all_cases = list(range(len(cases)))
    parts: list[Part] = []
    for name, numbers in (("model", all_cases), ("copy", all_cases), ("untrained", few)):
        parts += slices(name, "edit", usual, numbers)
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
    """The run's figures: the editor's own, its baselines', the curves, and its tests against each baseline."""

    def select(model: str, kind: str = "edit") -> list[metrics.Record]:
        return [record for record in records if record["model"] == model and record["kind"] == kind]

    editor, sdedit = select("model"), select("sdedit", "sweep")
    baselines = {"copy": select("copy"), "untrained": select("untrained")}
    for strength in config.evaluation.sdedit_strengths:
        baselines[f"sdedit {strength:g}"] = [record for record in sdedit if record["strength"] == strength]
    curves = {"model": metrics.curve(select("model", "sweep")), "sdedit": metrics.curve(sdedit, "strength")}
    return {
        **metrics.summarise(editor, edit_types),
        "judge": describe_judge(config.evaluation, config.scoring),
        "baselines": {name: metrics.summarise(edits, edit_types) for name, edits in baselines.items()},
        "paired": {name: metrics.paired(edits, editor) for name, edits in baselines.items() if edits},
        "curve": curves["model"],
        "curves": {name: points for name, points in curves.items() if points},
    }
