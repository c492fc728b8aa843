"""How the dataset was made: from captions to pairs, what was written, how it scored, what was accepted and is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ip2p.evaluation.metrics import types_of, wilson_interval
from ip2p.prompts import inspection
from ip2p.report import charts
from ip2p.report.facts import Row, RunFacts
from ip2p.report.format import clipped, count, duration, is_number, mapping, reason_name
from ip2p.report.svg import legend
from ip2p.scoring import SCORES

Section = dict[str, Any]

MOST_TYPES = 40
"""Edit types that a list or a chart has room for."""


def num_accepted(facts: RunFacts) -> int:
    """Candidates that the filter took."""
    return int(pc.sum(facts.candidates["accepted"]).as_py() or 0) if facts.candidates.num_rows else 0


def counted(table: pa.Table, column: str) -> Counter[str]:
    """How often a text occurs; the missing ones count as the empty one."""
    if not table.num_rows:
        return Counter()
    found = pc.value_counts(pc.fill_null(table[column].cast(pa.string()), ""))
    return Counter({pair["values"]: pair["counts"] for pair in found.to_pylist()})


def funnel(facts: RunFacts) -> Section:
    """Captions, triplets written and kept, candidates, accepted; with the reasons of what fell out."""
    if not facts.triplets.num_rows and not facts.candidates.num_rows:
        return {"missing": "No triplets were written yet."}
    steps: list[tuple[str, int, Counter[str]]] = []
    if num := facts.triplets.num_rows:
        lost = counted(facts.triplets, "reason")
        kept = lost.pop("", 0)
        steps.append(("Captions", pc.count_distinct(facts.triplets["caption"]).as_py(), Counter()))
        steps += [("Triplets written", num, lost), ("Triplets kept", kept, Counter())]
    if num := facts.candidates.num_rows:
        lost = counted(facts.candidates, "reason")
        kept = lost.pop("", 0)
        steps += [("Candidates rendered", num, lost), ("Pairs accepted", kept, Counter())]
    most = max(count for _, count, _ in steps) or 1
    return {"steps": [_funnel_step(name, count, count / most, lost) for name, count, lost in steps]}


def _funnel_step(name: str, count: int, share: float, lost: Counter[str]) -> Section:
    reasons = [{"name": reason_name(reason), "count": num} for reason, num in lost.most_common()]
    return {"name": name, "count": count, "width": round(100 * share, 2), "reasons": reasons}


def triplets(facts: RunFacts) -> Section:
    """What the prompt stage wrote: edit types, words, lengths and samples of every reason."""
    if not facts.generations:
        return {"missing": "No triplets were written yet."}
    found = inspection.measure(facts.generations)
    most = max((sum(counts.values()) for counts in found.edit_types.values()), default=1)
    samples = [
        {"reason": "kept" if not reason else reason_name(reason), "rows": [_sample(row) for row in rows]}
        for reason, rows in found.samples.items()
    ]
    return {
        "types": [_type_row(name, counts, most) for name, counts in list(found.edit_types.items())[:MOST_TYPES]],
        "words": [("Verbs", found.verbs), ("Objects", found.objects)],
        "lengths": [{"title": LENGTHS[name], "rows": _length_rows(counts)} for name, counts in found.lengths.items()],
        "samples": samples,
        "sampled": len(facts.generations) if len(facts.generations) < facts.triplets.num_rows else None,
    }


LENGTHS = {
    "original_prompt": "Words of the original caption",
    "edit_prompt": "Words of the instruction",
    "edited_prompt": "Words of the edited caption",
}
MOST_BARS = 12


def _type_row(name: str, counts: Mapping[str, int], most: int) -> Section:
    kept = counts.get("", 0)
    return {"name": name, "kept": kept, "lost": sum(counts.values()) - kept, "width": round(100 * kept / most, 2)}


def _length_rows(counts: Mapping[int, int]) -> list[Section]:
    most = max(counts.values(), default=1) or 1
    last = inspection.BIN_WORDS - 1
    shown = dict(list(counts.items())[:MOST_BARS])
    rows = [_bar(f"{start}–{start + last}", num, most) for start, num in shown.items()]
    rest = sum(counts.values()) - sum(shown.values())
    return [*rows, _bar(f"{max(shown) + last + 1} and more", rest, most)] if rest else rows


def _bar(name: str, num: int, most: int) -> Section:
    return {"name": name, "count": num, "width": round(100 * num / max(most, num), 2)}


def _sample(row: Mapping[str, Any]) -> Section:
    written = row["edit_prompt"] or " ".join(row["generation"].split())[:200]
    texts = {"original": row["caption"] or row["original_prompt"], "edit": written, "edited": row["edited_prompt"]}
    return {name: clipped(text) for name, text in texts.items()}


def scores(facts: RunFacts) -> Section:
    """Draws a histogram per score that was measured."""
    if not facts.candidates.num_rows:
        return {"missing": "No candidates were scored yet."}
    filtering = mapping(facts.config.get("filtering"))
    thresholds = mapping(filtering.get("thresholds"))
    histograms = [
        {"title": score.meaning, "svg": charts.score_histogram(facts.candidates, score, thresholds)}
        for score in SCORES.values()
    ]
    own = mapping(filtering.get("per_edit_type"))
    return {"charts": [histogram for histogram in histograms if histogram["svg"]], "own_thresholds": sorted(own)}


ACCEPTANCE = {
    "edit_type": "Edit type",
    "guidance_scale": "Guidance scale",
    "p2p": "Share of steps with prompt-to-prompt in self-attention",
    "cross_p2p": "Share of steps with prompt-to-prompt in cross-attention",
    "shared_steps": "Share of steps under the original's caption",
    "reweight": "Factor on new words",
    "reweight_steps": "Share of steps with that factor",
    "local_blend": "Share of steps with local blend",
}
"""Titles of what the acceptance is told by."""


def acceptance(facts: RunFacts) -> Section:
    """How many candidates are accepted by edit type and by every setting that was drawn."""
    told = mapping(mapping(facts.summary.get("rendering")).get("acceptance"))
    groups = []
    for key, rows in list(told.items())[:MOST_TYPES]:
        name, _, kind = key.partition(", ")
        title = ACCEPTANCE.get(name, name) + (f", {kind}" if kind else "")
        rows = [_acceptance_row(row) for row in rows[:MOST_TYPES] if row.get("candidates")]
        groups.append({"title": title, "rows": rows, "main": not kind})
    groups = [group for group in groups if group["rows"]]
    return {"groups": groups} if groups else {"missing": "Nothing was rendered yet."}


def _acceptance_row(row: Row) -> Row:
    name = row["name"] if "name" in row else f"{row['low']:.3g} to {row['high']:.3g}"
    return {"name": name or "no type", "candidates": row["candidates"], "rate": row["rate"]}


def precision(facts: RunFacts) -> Section:
    """Accepted against all candidates, by edit type."""
    found = precisions(facts)
    accepted, everything = found["accepted"], found["all"]
    if not accepted:
        return {"missing": "No pairs were judged by an oracle: the run has no domain, or no pairs yet."}
    series = {"accepted": accepted["by_type"]}
    if everything:
        series["all candidates"] = everything["by_type"]
    title = "Share of pairs that the oracle calls right"
    svg = charts.by_type_chart(series, "value", title, "share of pairs")
    return {**found, "svg": svg, "legend": legend(list(series))}


def precisions(facts: RunFacts) -> dict[str, Row | None]:
    """Share that is right, n, interval and the same by edit type: of the accepted, and of all where all were judged."""
    if not facts.oracle.num_rows:
        return {name: _told_precision(facts, name) for name in ("accepted", "all")}
    counts = facts.oracle.group_by(["edit_type", "accepted", "success"]).aggregate([([], "count_all")]).to_pylist()
    whole = facts.oracle.num_rows == facts.candidates.num_rows
    kinds = types_of(counts, list(mapping(facts.figures.get("by_type"))))[:MOST_TYPES]
    accepted = [row for row in counts if row["accepted"]]
    return {
        "accepted": _precision_of(accepted, kinds) if accepted else None,
        "all": _precision_of(counts, kinds) if whole else None,
    }


def _precision_of(counts: list[Row], kinds: list[str]) -> Row:
    by_type = {kind: [row for row in counts if str(row["edit_type"]) == kind] for kind in kinds}
    return {**_share(counts), "by_type": {kind: _share(some) for kind, some in by_type.items() if some}}


def _share(counts: list[Row]) -> Row:
    num = sum(row["count_all"] for row in counts)
    right = sum(row["count_all"] for row in counts if row["success"])
    return {"n": num, "value": right / num, "interval": wilson_interval(right, num)}


def _told_precision(facts: RunFacts, which: str) -> Row | None:
    """What the summary says, where the verdicts themselves are gone."""
    told, name = mapping(facts.summary.get("dataset")), "oracle_precision" + ("_all" if which == "all" else "")
    if told.get(name) is None:
        return None
    return {"value": told[name], "n": told.get(f"{name}_n"), "by_type": mapping(told.get(f"{name}_by_type"))}


def loss(facts: RunFacts) -> Section:
    """The loss curve."""
    svg = charts.loss_chart(facts.loss)
    if svg is None:
        return {"missing": "No training log was found (training/loss.jsonl)."}
    return {"svg": svg, "steps": facts.loss[-1]["step"]}


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
            how = (
                f"images through the denoiser, at one call a step, {steps} steps, guided ones twice, shared steps once"
            )
            rows.append(("denoiser evaluations per accepted pair", f"{calls / accepted:.1f}", how))
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
