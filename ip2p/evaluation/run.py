"""Evaluates a run: its editor beside the unchanged input, the untrained model and SDEdit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ip2p import store
from ip2p.config import PipelineConfig
from ip2p.evaluation.cases import EditCase, balanced_subset, hold_out_cases, load_domain
from ip2p.evaluation.editors import EditorSource, Setting, copy_source, editor_source, sdedit_source, untrained_source
from ip2p.evaluation.measures import Setup, set_up_measures
from ip2p.evaluation.measures.clip import describe_judge, judge_of
from ip2p.evaluation.metrics import Figures, Record, curve, paired, select, summarise
from ip2p.evaluation.parts import Part, Plan, edit_and_measure, sdedit_slices, slices, sweep_slices

logger = logging.getLogger(__name__)

MAX_UNTRAINED_EDITS = 98
"""The untrained baseline scores next to nothing whatever the number of cases."""


@store.summarised("evaluation")
def evaluate(
    config: PipelineConfig, *, data: str | Path | None = None, progress: Callable[[float], object] = lambda share: None
) -> Figures:
    """Edits the held-out cases with the trained editor and its baselines and returns the figures.

    If there is no domain, the cases are the test split of `evaluation.data`, of `data` or of the run's own dataset, the
    first that is set, and CLIP alone judges them. `progress` gets the share of the edits that are done. RuntimeError if
    nothing was trained yet.
    """
    from ip2p.models.components import model_index

    run = store.RunFolder(config.out)
    if not (run.model / "model_index.json").exists():
        raise RuntimeError(f"{run.model} holds no trained editor. Train one first, with `ip2p run` or `ip2p train`.")
    knobs, data = config.evaluation, config.evaluation.data or data
    domain = load_domain(knobs.domain) if knobs.domain else None
    if knobs.sdedit_strengths and "InstructPix2Pix" in str(model_index(config.training).get("_class_name")):
        logger.info("the training started from an editor, so SDEdit is left out: it needs a text-to-image model")
        knobs = replace(knobs, sdedit_strengths=())
        config = replace(config, evaluation=knobs)
    cases = hold_out_cases(config, domain, Path(data).expanduser() if data else None)
    if not cases:
        reason = "there are no held-out edits: the dataset has no readable test split and evaluation.domain is not set"
        logger.warning("skipped the evaluation: %s", reason)
        store.write_json(run.evaluation / "figures.json", {"skipped": reason})
        return {"skipped": reason}
    setup = Setup(
        knobs=knobs, clip=judge_of(knobs, config.scoring), folder=run.evaluation, notes=config.out, domain=domain
    )
    plan = Plan(
        folder=run.evaluation,
        knobs=knobs,
        cases=cases,
        editors=run_editors(config),
        parts=plan_parts(config, cases),
        measures=set_up_measures(setup),
    )
    records, seconds = edit_and_measure(plan, progress)
    figures = describe(config, records, domain.edit_types() if domain else ())
    figures |= {"seconds": seconds, "parts": [part.name for part in plan.parts if part.kind == "edit"]}
    store.write_json(run.evaluation / "figures.json", figures)
    return figures


def run_editors(config: PipelineConfig) -> dict[str, EditorSource]:
    """Returns the run's editor, then the baselines that show what its figures are worth."""
    knobs, base = config.evaluation, config.training
    return {
        "model": editor_source(str(store.RunFolder(config.out).model), knobs, config.out),
        "copy": copy_source(),
        "untrained": untrained_source(base, knobs, config.out),
        "sdedit": sdedit_source(base, knobs, config.out),
    }


def plan_parts(config: PipelineConfig, cases: Sequence[EditCase]) -> list[Part]:
    """Plans every editor's edits, then the sweep and SDEdit, each on as many cases as are set, then the grids."""
    knobs, all_cases = config.evaluation, list(range(len(cases)))
    usual = Setting(guidance_scale=knobs.guidance_scale, image_guidance_scale=knobs.image_guidance_scale)
    swept = balanced_subset(cases, knobs.num_sweep_edits)
    grid = balanced_subset(cases, knobs.num_grid_edits)
    parts = [
        *slices("model", "edit", usual, all_cases),
        *slices("copy", "edit", usual, all_cases),
        *slices("untrained", "edit", usual, balanced_subset(cases, MAX_UNTRAINED_EDITS)),
        *sweep_slices("model", knobs, swept),
        *sdedit_slices(knobs, balanced_subset(cases, knobs.num_sdedit_edits or knobs.num_sweep_edits)),
    ]
    for text in knobs.grid_guidance_scales:
        for image in knobs.grid_image_guidance_scales:
            parts += slices("model", "grid", Setting(guidance_scale=text, image_guidance_scale=image), grid)
    return parts


def describe(config: PipelineConfig, records: Sequence[Record], edit_types: Sequence[str]) -> Figures:
    """Computes the editor's figures, its baselines', the curves, and the tests against each baseline."""
    editor, sdedit = select(records, model="model", kind="edit"), select(records, model="sdedit", kind="sweep")
    baselines = {name: select(records, model=name, kind="edit") for name in ("copy", "untrained")}
    for strength in config.evaluation.sdedit_strengths:
        baselines[f"sdedit {strength:g}"] = select(sdedit, strength=strength)
    curves = {"model": curve(select(records, model="model", kind="sweep")), "sdedit": curve(sdedit, "strength")}
    return {
        **summarise(editor, edit_types),
        "judge": describe_judge(config.evaluation, config.scoring),
        "baselines": {name: summarise(edits, edit_types) for name, edits in baselines.items()},
        "paired": {name: paired(edits, editor) for name, edits in baselines.items() if edits},
        "curve": curves["model"],
        "curves": {name: points for name, points in curves.items() if points},
    }
