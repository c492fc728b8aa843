"""Decides which candidates become pairs: a pure function of their scores, so thresholds are re-tuned from the table.

A table of candidates has the columns of `records.as_row`. It is judged column by column: a million rows take seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ip2p.config import FilteringConfig, RenderingConfig, Thresholds
from ip2p.records import DRAWN_COLUMNS, SCORE_COLUMNS, Candidate, PairScores, Verdict

SCORES = ("original", "edited", "direction", "image", "contrast", "ssim", "dino", "nsfw")
"""In the order in which they are asked for; the first that is too low, or else too high, names the reason."""
OVER_LIMIT = "over_limit"
FIRST_LOOK = "first_look"


def judge(scores: PairScores, thresholds: Thresholds) -> Verdict:
    """Accepts scores that keep every threshold; else the reason is `low_` and the first that does not, or `high_`."""
    for name in SCORES:
        value, least = getattr(scores, name), getattr(thresholds, name, None)
        if least is not None and (value is None or not value >= least):  # not `<`: a NaN is no pass
            return Verdict(reason=f"low_{name}")
    for name in SCORES:
        value, most = getattr(scores, name), getattr(thresholds, f"max_{name}", None)
        if most is not None and (value is None or not value <= most):
            return Verdict(reason=f"high_{name}")
    return Verdict()


def thresholds_for(config: FilteringConfig, edit_type: str) -> Thresholds:
    """The edit type's own thresholds where it has any."""
    return config.per_edit_type.get(edit_type, config.thresholds)


def judge_candidate(candidate: Candidate, scores: PairScores, config: FilteringConfig) -> Verdict:
    """By the thresholds of the candidate's edit type; the limit per triplet is `judge_table`'s to know."""
    if scores.first_look:
        return Verdict(reason=FIRST_LOOK)
    return judge(scores, thresholds_for(config, candidate.triplet.edit_type))


def passes_first_look(candidate: Candidate, scores: PairScores, config: FilteringConfig) -> bool:
    """Whether the scores of a first look make it worth while to render the candidate in full."""
    limits = thresholds_for(config, candidate.triplet.edit_type)
    return judge(scores, _loosened(limits, config.first_look_slack)).accepted


def may_pass_now(table: pa.Table, config: FilteringConfig) -> pa.Array:
    """Which rows did not pass a first look under earlier thresholds and do under these: they must be rendered."""
    kinds = {kind: _loosened(limits, config.first_look_slack) for kind, limits in config.per_edit_type.items()}
    loose = replace(config, thresholds=_loosened(config.thresholds, config.first_look_slack), per_edit_type=kinds)
    return pa.array((_reasons(table, loose) == "") & _first_looks(table))


def judge_table(table: pa.Table, config: FilteringConfig) -> pa.Table:
    """Judges candidates anew, whatever was said of them before, and limits the pairs per triplet. Keeps the order."""
    reasons = _reasons(table, config)
    reasons[_first_looks(table)] = FIRST_LOOK
    accepted = np.flatnonzero(reasons == "")
    reasons[accepted[_is_surplus(table.take(pa.array(accepted)), config)]] = OVER_LIMIT
    columns = {"accepted": pa.array(reasons == "", pa.bool_()), "reason": pa.array(reasons, pa.string())}
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def count_verdicts(table: pa.Table) -> dict[str, int]:
    """Tallies: `candidates`, `accepted` and one entry per reason."""
    found = {row["values"]: row["counts"] for row in pc.value_counts(table["reason"]).to_pylist()}
    return {"candidates": len(table), "accepted": found.pop("", 0), **dict(sorted(found.items()))}


def num_accepted_by_triplet(table: pa.Table) -> dict[str, tuple[int, int]]:
    """(candidates, accepted) of every triplet of a table."""
    sums = table.group_by("triplet_id").aggregate([("accepted", "count"), ("accepted", "sum")])
    columns = (sums[name].to_pylist() for name in ("triplet_id", "accepted_count", "accepted_sum"))
    return {triplet_id: (num, num_accepted) for triplet_id, num, num_accepted in zip(*columns, strict=True)}


def _loosened(limits: Thresholds, slack: float) -> Thresholds:
    bounds = {each.name: getattr(limits, each.name) for each in fields(limits)}
    moved = {
        name: bound + slack if name.startswith("max_") else bound - slack
        for name, bound in bounds.items()
        if bound is not None
    }
    return replace(limits, **moved)


def _first_looks(table: pa.Table) -> np.ndarray:
    return np.asarray(pc.fill_null(table["first_look"], False), dtype=bool)


def _reasons(table: pa.Table, config: FilteringConfig) -> np.ndarray:
    """Why each row is rejected, "" where it is not; the limit per triplet is not asked for."""
    kinds, kind = np.unique(table["edit_type"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    limits = [thresholds_for(config, str(name)) for name in kinds]
    columns = {name: column for column, name in SCORE_COLUMNS.items()}
    reasons = np.full(len(table), "", dtype=object)
    for high in (True, False):
        for name in reversed(SCORES):  # so that the first in order has the last word
            found = [getattr(each, f"max_{name}" if high else name, None) for each in limits]
            if all(bound is None for bound in found):
                continue
            unbound = math.inf if high else -math.inf
            bounds = np.array([unbound if bound is None else bound for bound in found])[kind]
            values = table[columns[name]].to_numpy()  # a null becomes a NaN
            keeps = (values <= bounds) if high else (values >= bounds)
            reasons[~keeps & np.isfinite(bounds)] = f"{'high' if high else 'low'}_{name}"
    return reasons


def _is_surplus(accepted: pa.Table, config: FilteringConfig) -> np.ndarray:
    """Of accepted rows: whether they are beyond the limit of their triplet, worse in direction or later in number."""
    triplet = np.unique(accepted["triplet_id"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
    rank = np.zeros(len(accepted)) if config.selection == "first" else -accepted["clip_direction"].to_numpy()
    order = np.lexsort((accepted["candidate"].to_numpy(), rank, triplet))
    ordered = triplet[order]
    is_first = np.r_[True, ordered[1:] != ordered[:-1]] if len(ordered) else np.zeros(0, dtype=bool)
    starts = np.flatnonzero(is_first)
    place = np.arange(len(ordered)) - np.repeat(starts, np.diff(np.r_[starts, len(ordered)]))
    surplus = np.empty(len(accepted), dtype=bool)
    surplus[order] = place >= config.max_pairs_per_triplet
    return surplus


NUM_BINS = 5


def measure_acceptance(tables: Iterable[Path], config: RenderingConfig) -> dict[str, list[dict[str, Any]]]:
    """Accepted of all candidates in tables of candidates.

    `edit_type` lists the types with their counts and rates. Every range that is drawn from, `p2p` or, where an edit
    type has one of its own, `p2p, add`, lists five parts of equal width from `low` to `high`.
    """
    ranges = _ranges(config)
    by_type: dict[str, list[int]] = {}
    by_value = {each: np.zeros((2, NUM_BINS), dtype=int) for each in ranges}
    for path in tables:
        table = pq.read_table(path, columns=["edit_type", "accepted", *{name for name, _ in ranges}])
        accepted, kind = table["accepted"].to_numpy(), table["edit_type"].to_numpy(zero_copy_only=False).astype(str)
        for name in np.unique(kind):
            tally = by_type.setdefault(str(name), [0, 0])
            tally[0] += int((kind == name).sum())
            tally[1] += int(((kind == name) & accepted).sum())
        for (name, own), bounds in ranges.items():
            values, here = table[name].to_numpy(), _draws_from(config, kind, name, own)
            for row, some in enumerate((values[here], values[here & accepted])):
                by_value[name, own][row] += np.histogram(some, NUM_BINS, bounds)[0]
    rates = {"edit_type": [{"name": name, **_rate(*tally)} for name, tally in sorted(by_type.items())]}
    for (name, own), bounds in ranges.items():
        edges = np.linspace(*bounds, NUM_BINS + 1).round(4).tolist()
        rates[f"{name}, {own}" if own else name] = [
            {"low": low, "high": high, **_rate(int(num), int(num_accepted))}
            for low, high, num, num_accepted in zip(edges[:-1], edges[1:], *by_value[name, own], strict=True)
        ]
    return rates


def _ranges(config: RenderingConfig) -> dict[tuple[str, str], tuple[float, float]]:
    """By setting and edit type, "" for all that have none of their own; only what differs between candidates."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for name in DRAWN_COLUMNS:
        for own, settings in (("", config), *sorted(config.per_edit_type.items())):
            bounds = getattr(settings, name)
            if bounds is not None and bounds[0] < bounds[1]:
                found[name, own] = bounds
    return found


def _draws_from(config: RenderingConfig, kind: np.ndarray, name: str, own: str) -> np.ndarray:
    """Which rows draw a setting from the range of an edit type, or from the general one."""
    if own:
        mine: np.ndarray = kind == own
        return mine
    others = [each for each, settings in config.per_edit_type.items() if getattr(settings, name) is not None]
    chosen: np.ndarray = ~np.isin(kind, others)
    return chosen


def _rate(num: int, num_accepted: int) -> dict[str, Any]:
    return {
        "candidates": num,
        "accepted": num_accepted,
        "rate": round(num_accepted / num, 4) if num else None,
    }
