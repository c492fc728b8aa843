"""What the run cost: seconds by stage, and what an accepted pair took in renders, calls of the denoiser and seconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from ip2p.evaluation.report.making import num_accepted
from ip2p.evaluation.report.reading import Row, RunFacts
from ip2p.evaluation.report.wording import count, duration, is_number, mapping

Section = dict[str, Any]

STAGES = {
    "prompts": "Prompts",
    "rendering": "Rendering and scoring",
    "dataset": "Dataset",
    "training": "Training",
    "evaluation": "Evaluation",
}
DATA_STAGES = ("prompts", "rendering", "dataset")


def cost(facts: RunFacts) -> Section:
    """Seconds per stage and the figures of a pair."""
    rows = figures_of_cost(facts)
    if not facts.seconds and not rows:
        return {"missing": "No stage has told its time yet."}
    most = max(facts.seconds.values(), default=1.0) or 1.0
    stages = [
        {"name": STAGES.get(stage, stage), "words": duration(value), "width": round(100 * value / most, 2)}
        for stage, value in facts.seconds.items()
    ]
    return {"stages": stages, "total": duration(sum(facts.seconds.values())), "rows": rows}


def figures_of_cost(facts: RunFacts) -> list[tuple[str, str, str]]:
    """(what, figure, how it is counted) of all that the run tells."""
    rows: list[tuple[str, str, str]] = []
    accepted, rendered = num_accepted(facts), facts.candidates.num_rows
    if accepted:
        share = f"{count(rendered)} candidates of two images each, {count(accepted)} accepted"
        rows.append(("Candidates rendered per accepted pair", f"{rendered / accepted:.2f}", share))
        if (calls := denoiser_calls(facts)) is not None:
            steps = mapping(facts.config.get("rendering")).get("num_inference_steps")
            how = f"images through the UNet, at one call a step, {steps} steps, guided ones twice, shared steps once"
            rows.append(("UNet evaluations per accepted pair", f"{calls / accepted:.1f}", how))
        rows += _pair_seconds(facts, accepted)
    return rows + _training(facts)


def _pair_seconds(facts: RunFacts, accepted: int) -> list[tuple[str, str, str]]:
    rendering = facts.seconds.get("rendering")
    if not rendering:
        return []
    whole = sum(facts.seconds.get(stage, 0.0) for stage in DATA_STAGES)
    alone = "rendering and scoring alone; work of all workers added up"
    return [
        ("Seconds per accepted pair", f"{rendering / accepted:#.3g} s", alone),
        ("… from caption to dataset", f"{whole / accepted:#.3g} s", "with prompts and the dataset's files"),
        ("Accepted pairs an hour", count(round(3600 * accepted / whole)), "from caption to dataset, by one worker"),
    ]


def _training(facts: RunFacts) -> list[tuple[str, str, str]]:
    told, knobs = mapping(facts.summary.get("training")), mapping(facts.config.get("training"))
    seconds, steps = facts.seconds.get("training"), told.get("steps")
    if not seconds or not is_number(steps):
        return []
    size = knobs.get("train_batch_size", 1) * knobs.get("gradient_accumulation_steps", 1)
    how = f"{count(int(steps))} steps of {size} pairs a process in {duration(seconds)}"
    return [("Training steps a second", f"{steps / seconds:.3g}", how)]


def denoiser_calls(facts: RunFacts) -> float | None:
    """Images that went through the denoiser for all candidates; None where the candidates do not tell their settings.

    A step computes both sides, or only the original's where both still share it; guidance doubles that.
    """
    knobs = mapping(facts.config.get("rendering"))
    steps, quick = knobs.get("num_inference_steps"), knobs.get("first_look_steps")
    names = facts.candidates.column_names
    if not is_number(steps) or "guidance_scale" not in names or "shared_steps" not in names:
        return None
    guidance, shared = (_numbers(facts.candidates, name) for name in ("guidance_scale", "shared_steps"))
    halves = np.where(guidance > 1, 2, 1)
    calls = halves * _images(int(steps), shared)
    if quick is not None:
        looked = halves * _images(int(quick), shared)
        dropped = facts.candidates["first_look"].cast(pa.bool_()).fill_null(False).to_numpy()
        calls = np.where(dropped, looked, looked + calls)
    return float(calls.sum())


def _numbers(table: pa.Table, name: str) -> Any:
    return np.nan_to_num(table[name].cast(pa.float64()).fill_null(0.0).to_numpy())


def _images(steps: int, shared: Any) -> Any:
    """Images that one guidance half of a pair computes."""
    starts = np.arange(steps) / max(1, steps - 1)
    return 2 * steps - (shared[:, None] > starts[None, :]).sum(axis=1)


def compared(facts: RunFacts) -> Row:
    """What a comparison says of a run's cost, by title."""
    told = {what: figure for what, figure, _ in figures_of_cost(facts)}
    total = {"All stages": duration(sum(facts.seconds.values()))} if facts.seconds else {}
    return {**told, **total}
