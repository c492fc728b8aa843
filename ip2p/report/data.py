"""How the dataset was made: from captions to pairs, what was written, how it scored, what was accepted and is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ip2p.filtering import count_values
from ip2p.prompts import inspection
from ip2p.report.charts import Floats, by_type_chart, loss_chart, score_histogram
from ip2p.report.facts import Figures, Json, count_of, is_number, mapping, read_figure, sequence
from ip2p.report.format import MOST_TYPES, clipped, count, duration, percent, reason_name, score
from ip2p.report.format import scores as score_range
from ip2p.report.reading import RunFacts
from ip2p.report.svg import Chart
from ip2p.scoring import SCORES

MOST_BARS = 12
"""Bars of a histogram of lengths."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar with its words on both sides."""

    name: str
    width: float
    """Percent of the longest possible bar."""
    text: str
    tip: str = ""
    reasons: Sequence[tuple[str, int]] = ()
    """Reasons for what was lost here, and how often."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars under a title."""

    title: str
    bars: list[Bar]
    is_own: bool = False
    """True for an edit type that has its own ranges."""


def _bar(name: str, num: int, most: int, tip: str = "", reasons: Sequence[tuple[str, int]] = ()) -> Bar:
    return Bar(name, round(100 * num / max(most, num, 1), 2), count(num), tip, reasons)


def num_accepted(facts: RunFacts) -> int:
    """Counts the accepted candidates."""
    return int(pc.sum(facts.candidates["accepted"]).as_py() or 0) if facts.candidates.num_rows else 0


def _reasons_of(table: pa.Table) -> tuple[int, list[tuple[str, int]]]:
    """Counts the rows that were kept, and the others by reason, the most frequent first."""
    counts = Counter(count_values(pc.fill_null(table["reason"].cast(pa.string()), "")))
    kept = counts.pop("", 0)
    return kept, [(reason_name(reason), num) for reason, num in counts.most_common()]


def funnel(facts: RunFacts) -> list[Bar] | str:
    """Shows captions, triplets written and kept, candidates, accepted; with the reasons for what was lost."""
    steps: list[tuple[str, int, Sequence[tuple[str, int]]]] = []
    if num := facts.triplets.num_rows:
        kept, lost = _reasons_of(facts.triplets)
        steps.append(("Captions", pc.count_distinct(facts.triplets["caption"]).as_py(), ()))
        steps += [("Triplets written", num, lost), ("Triplets kept", kept, ())]
    if num := facts.candidates.num_rows:
        kept, lost = _reasons_of(facts.candidates)
        steps += [("Candidates rendered", num, lost), ("Pairs accepted", kept, ())]
    if not steps:
        return "No triplets were written yet."
    most = max(num for _, num, _ in steps)
    return [_bar(name, num, most, reasons=reasons) for name, num, reasons in steps]


LENGTHS = {
    "original_prompt": "Words of the original caption",
    "edit_prompt": "Words of the instruction",
    "edited_prompt": "Words of the edited caption",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Triplets:
    """What the prompt stage wrote."""

    panels: list[Panel]
    words: list[tuple[str, Sequence[tuple[str, int]]]]
    """Verbs and objects of the instructions with their counts."""
    samples: list[tuple[str, str, str, str]]
    """(verdict, caption, instruction, edited caption)."""
    num_counted: int | None
    """Triplets that were counted; None if all were."""


def triplets(facts: RunFacts) -> Triplets | str:
    """Shows what the prompt stage wrote: edit types, words, lengths and samples of every reason."""
    if not facts.generations:
        return "No triplets were written yet."
    statistics = inspection.measure(facts.generations)
    most = max((sum(counts.values()) for counts in statistics.edit_types.values()), default=1)
    types = [
        _bar(name, counts.get("", 0), most, f"{count(sum(counts.values()) - counts.get('', 0))} rejected")
        for name, counts in list(statistics.edit_types.items())[:MOST_TYPES]
    ]
    num = len(facts.generations)
    return Triplets(
        panels=[
            Panel("Kept, by edit type", types),
            *(Panel(LENGTHS[name], _length_bars(counts)) for name, counts in statistics.lengths.items()),
        ],
        words=[("Verbs", statistics.verbs), ("Objects", statistics.objects)],
        samples=[
            (
                reason_name(reason) if reason else "kept",
                clipped(row["caption"] or row["original_prompt"]),
                clipped(row["edit_prompt"] or clipped(row["generation"])[:200]),
                clipped(row["edited_prompt"]),
            )
            for reason, rows in statistics.samples.items()
            for row in rows
        ],
        num_counted=num if num < facts.triplets.num_rows else None,
    )


def _length_bars(counts: Mapping[int, int]) -> list[Bar]:
    most = max(counts.values(), default=1)
    last = inspection.BIN_WORDS - 1
    starts = list(counts)[:MOST_BARS]
    bars = [_bar(f"{start}–{start + last}", counts[start], most) for start in starts]
    rest = sum(counts.values()) - sum(counts[start] for start in starts)
    return [*bars, _bar(f"{max(starts) + last + 1} and more", rest, most)] if rest else bars


def scores(facts: RunFacts) -> list[Chart] | str:
    """Draws a histogram of each score that was measured."""
    if not facts.candidates.num_rows:
        return "No candidates were scored yet."
    thresholds = facts.config.filtering.thresholds
    histograms = [score_histogram(facts.candidates, score, thresholds) for score in SCORES.values()]
    return [chart for chart in histograms if chart]


def judges(facts: RunFacts) -> list[tuple[str, Sequence[str]]]:
    """Lists each judge that was tried with its AUROC, the interval and the pairs that it judged."""
    titles = {each.column: each.title for each in SCORES.values()}
    return [
        (titles.get(name, name), (score(tried.auroc), score_range(tried.low, tried.high), count(tried.n)))
        for name, tried in facts.judges.items()
    ]


SHOWN = {
    "rewritten": "another than the written one",
    "as_written": "the written one",
    "unnamed": "none that the judge could name",
}
"""Words for what `filtering.count_shown` counts."""


def shown(facts: RunFacts) -> list[tuple[str, tuple[str, str]]]:
    """Lists how many accepted pairs show which instruction, with their shares; empty if the judge was not asked."""
    counts = {name: count_of(num) for name, num in mapping(facts.summary_of("rendering").get("shown")).items()}
    total = sum(counts.values())
    return [
        (words, (count(counts.get(name, 0)), percent(counts.get(name, 0) / total)))
        for name, words in SHOWN.items()
        if total
    ]


ACCEPTANCE = {
    "edit_type": "Edit type",
    "guidance_scale": "Guidance scale",
    "p2p": "Share of steps with prompt-to-prompt in self-attention",
    "cross_p2p": "Share of steps with prompt-to-prompt in cross-attention",
    "shared_steps": "Share of steps under the original caption",
    "reweight": "Factor on new words",
    "reweight_steps": "Share of steps with that factor",
    "local_blend": "Share of steps with local blend",
}
"""Titles of what the acceptance is counted by."""


def acceptance(facts: RunFacts) -> list[Panel] | str:
    """Shows how many candidates are accepted by edit type and by every setting that was drawn."""
    panels = []
    for key, rows in list(mapping(facts.summary_of("rendering").get("acceptance")).items())[:MOST_TYPES]:
        name, _, kind = key.partition(", ")
        title = ACCEPTANCE.get(name, name) + (f", {kind}" if kind else "")
        parts = [mapping(row) for row in sequence(rows)[:MOST_TYPES]]
        panels.append(Panel(title, [_acceptance_bar(row) for row in parts if row.get("candidates")], bool(kind)))
    return [panel for panel in panels if panel.bars] or "Nothing was rendered yet."


def _acceptance_bar(row: Json) -> Bar:
    name = row["name"] if "name" in row else f"{row['low']:.3g} to {row['high']:.3g}"
    rate = rate if is_number(rate := row.get("rate")) else 0.0
    return Bar(str(name or "no type"), 100 * rate, percent(rate), f"of {count(count_of(row['candidates']))} candidates")


@dataclass(frozen=True, slots=True)
class Precision:
    """How many pairs are right; `success` is the share."""

    accepted: Figures
    all: Figures | None
    chart: Chart | None


def precision(facts: RunFacts) -> Precision | str:
    """Compares the accepted pairs with all candidates, by edit type."""
    accepted, everything = precisions(facts)
    if not accepted:
        return "No pairs were judged by an oracle: the run has no domain, or no pairs yet."
    series = {"accepted": accepted.by_type, **({"all candidates": everything.by_type} if everything else {})}
    chart = by_type_chart(series, "success", "Share of pairs that the oracle calls right", "share of pairs")
    return Precision(accepted, everything, chart)


def precisions(facts: RunFacts) -> tuple[Figures | None, Figures | None]:
    """Returns the share that is right: of the accepted pairs, and of all candidates if all were judged."""
    return _precision(facts.precision, "oracle_precision"), _precision(facts.precision, "oracle_precision_all")


def _precision(summary: Json, name: str) -> Figures | None:
    """Reads a part of what `evaluation.precision` adds to the dataset's summary."""
    share = read_figure(summary.get(name), summary.get(f"{name}_interval"))
    if share is None:
        return None
    by_type = {}
    for kind, raw in list(mapping(summary.get(f"{name}_by_type")).items())[:MOST_TYPES]:
        part = mapping(raw)
        if figure := read_figure(part.get("value"), part.get("interval")):
            by_type[kind] = Figures(n=count_of(part.get("n")), values={"success": figure})
    return Figures(n=count_of(summary.get(f"{name}_n")), values={"success": share}, by_type=by_type)


def loss(facts: RunFacts) -> Chart | str:
    """Draws the loss curve."""
    return loss_chart(facts.loss) or "No training log was found (training/loss.jsonl)."


STAGES = {
    "prompts": "Prompts",
    "rendering": "Rendering and scoring",
    "dataset": "Dataset",
    "training": "Training",
    "evaluation": "Evaluation",
}
DATA_STAGES = ("prompts", "rendering", "dataset")


Rate = tuple[str, str, str]
"""A title, a figure of the cost, and how it is counted."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What the run took."""

    stages: list[Bar]
    total: str
    rates: list[Rate]


def cost(facts: RunFacts) -> Cost | str:
    """Shows seconds per stage and what a pair took."""
    rates = rates_of(facts)
    if not facts.seconds and not rates:
        return "No stage has recorded its time yet."
    most = max(facts.seconds.values(), default=1.0) or 1.0
    stages = [
        Bar(STAGES.get(stage, stage), round(100 * seconds / most, 2), duration(seconds))
        for stage, seconds in facts.seconds.items()
    ]
    return Cost(stages, duration(sum(facts.seconds.values())), rates)


def rates_of(facts: RunFacts) -> list[Rate]:
    """Returns what an accepted pair and a training step took, as far as the run records it."""
    rates: list[Rate] = []
    if accepted := num_accepted(facts):
        rendered = facts.candidates.num_rows
        how = f"{count(rendered)} candidates of two images each, {count(accepted)} accepted"
        rates.append(("Candidates rendered per accepted pair", f"{rendered / accepted:.2f}", how))
        if (calls := denoiser_calls(facts)) is not None:
            steps = facts.config.rendering.num_inference_steps
            how = f"images, counting one call a step, {steps} steps, guided ones twice, shared steps once"
            rates.append(("Denoiser evaluations per accepted pair", f"{calls / accepted:.1f}", how))
        if rendering := facts.seconds.get("rendering"):
            whole = sum(facts.seconds.get(stage, 0.0) for stage in DATA_STAGES)
            how = "rendering and scoring alone; work of all workers added up"
            rates.append(("Seconds per accepted pair", f"{rendering / accepted:#.3g} s", how))
            how = "with prompts and the dataset's files"
            rates.append(("… from caption to dataset", f"{whole / accepted:#.3g} s", how))
            how = "from caption to dataset, by one worker"
            rates.append(("Accepted pairs an hour", count(round(3600 * accepted / whole)), how))
    seconds, steps_done = facts.seconds.get("training"), facts.summary_of("training").get("steps")
    if seconds and is_number(steps_done):
        training = facts.config.training
        size = training.train_batch_size * training.gradient_accumulation_steps
        how = f"{count(int(steps_done))} steps of {size} pairs a process in {duration(seconds)}"
        rates.append(("Training steps a second", f"{steps_done / seconds:.3g}", how))
    return rates


def denoiser_calls(facts: RunFacts) -> float | None:
    """Counts the images that went through the denoiser for all candidates; None if that is not known.

    It is known of prompt-to-prompt, if the candidates' settings were recorded.

    A step computes both sides, or only the original's while both still share it; guidance doubles that.
    """
    settings = facts.config.rendering
    if settings.backend != "p2p":
        return None
    if not {"guidance_scale", "shared_steps"} <= set(facts.candidates.column_names):
        return None
    guidance, shared = (
        np.nan_to_num(np.asarray(facts.candidates[name].cast(pa.float64()).fill_null(0.0), np.float64))
        for name in ("guidance_scale", "shared_steps")
    )
    halves = np.where(guidance > 1, 2, 1)
    calls = halves * _images(settings.num_inference_steps, shared)
    if settings.first_look_steps is not None:
        previews = halves * _images(settings.first_look_steps, shared)
        dropped = facts.candidates["first_look"].cast(pa.bool_()).fill_null(False).to_numpy()
        calls = np.where(dropped, previews, previews + calls)
    return float(calls.sum())


def _images(steps: int, shared: Floats) -> Floats:
    """Counts the images that one guidance half of a pair computes."""
    starts = np.arange(steps) / max(1, steps - 1)
    return np.asarray(2.0 * steps - np.searchsorted(starts, shared))
