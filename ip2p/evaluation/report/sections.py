"""What the report says, in which order: facts of a run to the values that the template lays out.

Every section is a dict with `missing`, a sentence, in place of its content where the run has nothing to show yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ip2p.evaluation.metrics import types_of
from ip2p.evaluation.report import figures
from ip2p.evaluation.report.cards import REASONS, choose_edits, edit_cards, pair_cards
from ip2p.evaluation.report.pictures import take_turns
from ip2p.evaluation.report.reading import Row, RunFacts
from ip2p.prompts import statistics

Section = dict[str, Any]

NUM_PAIRS_SHOWN = 24
NUM_EDITS_PER_TYPE = 9
STAGES = {
    "prompts": "Prompts",
    "rendering": "Rendering and scoring",
    "dataset": "Dataset",
    "training": "Training",
    "evaluation": "Evaluation",
}


def headlines(facts: RunFacts) -> list[Section]:
    """The few figures that sum the run up: title, value and a line beneath."""
    found, tiles = facts.figures, []
    if found.get("success") is not None:
        tiles += [_share_tile("Edits that succeed", found, "success", "done and kept")]
        tiles += [_share_tile("Done", found, "done", "the change is there")]
        tiles += [_share_tile("Kept", found, "kept", "all else as before")]
    elif found.get("clip_direction") is not None:
        tiles += [
            {
                "title": "CLIP direction",
                "value": f"{found['clip_direction']:.3f}",
                "note": f"{found['n']} held-out edits",
            }
        ]
        tiles += [
            {"title": "CLIP image similarity", "value": f"{found['clip_image']:.3f}", "note": "original against edited"}
        ]
    if facts.candidates:
        num, total = sum(bool(row["accepted"]) for row in facts.candidates), len(facts.candidates)
        tiles += [
            {"title": "Accepted pairs", "value": f"{num:,}", "note": f"{num / total:.0%} of {total:,} candidates"}
        ]
    precision = _precision(facts)
    if precision.get("accepted") is not None:
        everything = precision.get("all")
        note = f"{everything:.0%} of all candidates" if everything is not None else "by the oracle"
        tiles += [{"title": "Accepted pairs that are right", "value": f"{precision['accepted']:.0%}", "note": note}]
    if facts.seconds:
        tiles += [{"title": "Time", "value": _minutes(sum(facts.seconds.values())), "note": "all stages"}]
    return tiles


def _share_tile(title: str, found: Row, name: str, note: str) -> Section:
    low, high = found[f"{name}_interval"]
    return {
        "title": title,
        "value": f"{found[name]:.0%}",
        "note": f"{note}; {low:.0%}–{high:.0%} (95\u00a0%), n\u00a0=\u00a0{found['n']}",
    }


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def funnel(facts: RunFacts) -> Section:
    """Captions, triplets written and kept, candidates, accepted; with the reasons of what fell out."""
    if not facts.triplets and not facts.candidates:
        return {"missing": "No triplets were written yet."}
    steps: list[tuple[str, int, Counter[str]]] = []
    if facts.triplets:
        lost = Counter(str(row["reason"]) for row in facts.triplets if row["reason"])
        steps.append(("Captions", len({row["caption"] for row in facts.triplets}), Counter()))
        steps.append(("Triplets written", len(facts.triplets), lost))
        steps.append(("Triplets kept", len(facts.triplets) - sum(lost.values()), Counter()))
    if facts.candidates:
        lost = Counter(str(row["reason"]) for row in facts.candidates if row["reason"])
        steps.append(("Candidates rendered", len(facts.candidates), lost))
        steps.append(("Pairs accepted", len(facts.candidates) - sum(lost.values()), Counter()))
    most = max(count for _, count, _ in steps) or 1
    return {"steps": [_funnel_step(name, count, count / most, lost) for name, count, lost in steps]}


def _funnel_step(name: str, count: int, share: float, lost: Counter[str]) -> Section:
    reasons = [{"name": REASONS.get(reason, reason), "count": num} for reason, num in lost.most_common()]
    return {"name": name, "count": count, "width": round(100 * share, 2), "reasons": reasons}


def triplets(facts: RunFacts) -> Section:
    """What the prompt stage wrote: edit types, words, lengths and samples of every reason."""
    if not facts.triplets:
        return {"missing": "No triplets were written yet."}
    found = statistics.measure(facts.triplets)
    most = max((sum(counts.values()) for counts in found.edit_types.values()), default=1)
    samples = [
        {"reason": REASONS.get(reason, reason) or "kept", "rows": [_sample(row) for row in rows]}
        for reason, rows in found.samples.items()
    ]
    return {
        "types": [_type_row(name, counts, most) for name, counts in found.edit_types.items()],
        "words": [("Verbs", found.verbs), ("Objects", found.objects)],
        "lengths": [{"title": LENGTHS[name], "rows": _length_rows(counts)} for name, counts in found.lengths.items()],
        "samples": samples,
    }


LENGTHS = {
    "original_prompt": "Words of the original caption",
    "edit_prompt": "Words of the instruction",
    "edited_prompt": "Words of the edited caption",
}


def _type_row(name: str, counts: Mapping[str, int], most: int) -> Section:
    kept = counts.get("", 0)
    return {"name": name, "kept": kept, "lost": sum(counts.values()) - kept, "width": round(100 * kept / most, 2)}


def _length_rows(counts: Mapping[int, int]) -> list[Section]:
    most = max(counts.values(), default=1) or 1
    last = statistics.BIN_WORDS - 1
    return [
        {"name": f"{start}–{start + last}", "count": num, "width": round(100 * num / most, 2)}
        for start, num in counts.items()
    ]


def _sample(row: Mapping[str, Any]) -> Section:
    written = row["edit_prompt"] or " ".join(row["generation"].split())[:200]
    return {"original": row["caption"] or row["original_prompt"], "edit": written, "edited": row["edited_prompt"]}


def scores(facts: RunFacts) -> Section:
    """A histogram per similarity."""
    if not facts.candidates:
        return {"missing": "No candidates were scored yet."}
    filtering = _dict(facts.config.get("filtering"))
    thresholds = _dict(filtering.get("thresholds"))
    charts = [
        {"title": title, "svg": figures.score_histogram(facts.candidates, column, thresholds.get(name))}
        for column, (name, title) in figures.SCORES.items()
    ]
    own = _dict(filtering.get("per_edit_type"))
    return {"charts": [chart for chart in charts if chart["svg"]], "own_thresholds": sorted(own)}


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
    told = _dict(_dict(facts.summary.get("rendering")).get("acceptance"))
    groups = []
    for key, rows in told.items():
        name, _, kind = key.partition(", ")
        title = ACCEPTANCE.get(name, name) + (f", {kind}" if kind else "")
        groups.append({"title": title, "rows": [_acceptance_row(row) for row in rows if row.get("candidates")]})
    groups = [group for group in groups if group["rows"]]
    return {"groups": groups} if groups else {"missing": "Nothing was rendered yet."}


def _acceptance_row(row: Row) -> Row:
    name = row["name"] if "name" in row else f"{row['low']:.3g} to {row['high']:.3g}"
    return {"name": name or "no type", "candidates": row["candidates"], "rate": row["rate"]}


def _dict(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def pairs(facts: RunFacts, *, accepted: bool) -> Section:
    """A contact sheet of accepted pairs by edit type, or of rejected ones by reason."""
    rows = [row for row in facts.pairs if bool(row["accepted"]) == accepted]
    if not rows:
        return {"missing": _no_pairs(facts, accepted)}
    group = "edit_type" if accepted else "reason"
    chosen = take_turns(rows, lambda row: row[group], NUM_PAIRS_SHOWN)
    return {"cards": pair_cards(facts, chosen), "total": len(rows)}


def _no_pairs(facts: RunFacts, accepted: bool) -> str:
    if not facts.candidates:
        return "No pairs were rendered yet."
    if accepted:
        return "No candidate was accepted."
    if all(row["accepted"] for row in facts.candidates):
        return "No candidate was rejected."
    return "The images of rejected candidates were not kept; run with --rendering.keep-rejected-images to see them."


def precision(facts: RunFacts) -> Section:
    """Accepted against all candidates, by edit type."""
    found = _precision(facts)
    if found.get("accepted") is None:
        return {"missing": "No pairs were judged by an oracle: the run has no domain, or no pairs yet."}
    series = {"accepted": found["accepted_by_type"]}
    if found.get("all") is not None:
        series["all candidates"] = found["all_by_type"]
    title = "Share of pairs that the oracle calls right"
    return {**found, "svg": figures.by_type_chart(series, "value", title, "share of pairs"), "names": list(series)}


def _precision(facts: RunFacts) -> Row:
    from ip2p.evaluation.oracle_precision import summarise_precision

    judged = list(facts.oracle.values())
    if not judged:
        told = _dict(facts.summary.get("dataset"))
        return {
            "accepted": told.get("oracle_precision"),
            "all": told.get("oracle_precision_all"),
            "accepted_by_type": {},
            "all_by_type": {},
        }
    everything = len(judged) == len(facts.candidates)
    kinds = types_of(judged, list(_dict(facts.figures.get("by_type"))))
    found = summarise_precision(judged, kinds, everything=everything)
    short = {
        name.replace("oracle_precision_all", "all").replace("oracle_precision", "accepted"): value
        for name, value in found.items()
    }
    return short


def loss(facts: RunFacts) -> Section:
    """The loss curve."""
    svg = figures.loss_chart(facts.loss)
    if svg is None:
        return {"missing": "No training log was found (training/loss.jsonl)."}
    return {"svg": svg, "steps": facts.loss[-1]["step"]}


def oracle(facts: RunFacts) -> Section:
    """Done, kept and success by edit type for the editor and its baselines."""
    if not facts.figures.get("n"):
        return {"missing": facts.figures.get("skipped") or "The editor was not evaluated yet."}
    judged = facts.figures.get("success") is not None
    baselines = _dict(facts.figures.get("baselines"))
    models = {
        "trained editor": facts.figures,
        "untrained": baselines.get("untrained"),
        "copy the input": baselines.get("copy"),
    }
    present = {name: some for name, some in models.items() if some and some.get("n")}
    svg = None
    if judged:
        series = {name: {**some.get("by_type", {}), "all types": some} for name, some in present.items()}
        svg = figures.by_type_chart(series, "success", "Success by edit type", "share of held-out edits that succeed")
    return {"judged": judged, "svg": svg, "models": present, "kinds": list(facts.figures.get("by_type", {}))}


def edits(facts: RunFacts) -> Section:
    """Before and after by edit type: the first successes and the first failures."""
    if not facts.edits or facts.cases is None:
        return {"missing": "No held-out edits were made yet."}
    sheets = []
    for kind in types_of(facts.edits, list(_dict(facts.figures.get("by_type")))):
        rows = [row for row in facts.edits if row["edit_type"] == kind]
        chosen = choose_edits(rows, NUM_EDITS_PER_TYPE)
        cards = edit_cards(facts, chosen)
        good = sum(bool(row["success"]) for row in rows) if rows[0]["success"] is not None else None
        sheets.append({"kind": kind, "cards": cards, "good": good, "total": len(rows)})
    return {"sheets": sheets}


def guidance(facts: RunFacts) -> Section:
    """The sweep of the image guidance."""
    curve = facts.figures.get("curve") or []
    svg = figures.guidance_chart(curve)
    rates = figures.rates_chart(curve)
    if svg is None and rates is None:
        return {"missing": "The image guidance was not swept yet."}
    return {"svg": svg, "rates": rates, "points": curve, "n": curve[0]["n"]}


def times(facts: RunFacts) -> Section:
    """Seconds per stage."""
    if not facts.seconds:
        return {"missing": "No stage has told its time yet."}
    most = max(facts.seconds.values()) or 1.0
    rows = [
        {
            "name": STAGES.get(stage, stage),
            "seconds": value,
            "words": duration(value),
            "width": round(100 * value / most, 2),
        }
        for stage, value in facts.seconds.items()
    ]
    return {"rows": rows, "total": duration(sum(facts.seconds.values()))}


def setting_rows(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The config as (dotted name, value) lines."""
    rows: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            rows += [(f"{key}.{name}", text) for name, text in setting_rows(value)]
        else:
            rows.append((key, str(value)))
    return rows
