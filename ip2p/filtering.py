"""Decides which candidates become pairs. The verdict is a pure function of the scores, so it can be redone at any time.

One rule works column by column on a table of candidates (`rendering.table.SCHEMA`) or on the scores of a batch; a
million rows take seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ip2p.config import FilteringConfig, RenderingConfig, Thresholds
from ip2p.picture_judge import judge_identity, shown_identity
from ip2p.records import DRAWN_COLUMNS, SHOWN_COLUMNS, Candidate, PairScores, Verdict
from ip2p.scoring import BOUNDS, SCORES

OVER_LIMIT = "over_limit"
FIRST_LOOK = "first_look"
NOT_RENDERED = "not_rendered"
OPEN = "vlm_open"
UNREAD = "vlm_unread"
REASONS = {
    **{reason: bound.words for reason, bound in BOUNDS.items()},
    OVER_LIMIT: "enough of this triplet",
    FIRST_LOOK: "given up after a first look",
    NOT_RENDERED: "could not be rendered",
    OPEN: "the judge has not answered yet",
    UNREAD: "the judge's answer holds no scores",
}
"""Words for every reason against a candidate."""
HAVE_PLACE = ("", OPEN)
"""Reasons, or none, of candidates that take one of their triplet's places: accepted, or so once a judge answers."""


def judge(scores: PairScores, thresholds: Thresholds) -> Verdict:
    """Accepts scores within all bounds; else gives the first that is too low or, if none is, too high."""
    (reason,) = _reasons(_columns_of([scores]), [thresholds], np.zeros(1, dtype=int))
    return Verdict(reason=reason)


def judge_batch(
    candidates: Sequence[Candidate], scores: Sequence[PairScores], config: FilteringConfig
) -> list[Verdict]:
    """Judges candidates by the thresholds of their edit types; only `judge_table` applies the limit per triplet."""
    judges = np.array([values.vlm_judge for values in scores], dtype=object)
    reasons = _judged(_columns_of(scores), _types_of(candidates), judges, config)
    reasons[np.array([values.first_look for values in scores], dtype=bool)] = FIRST_LOOK
    reasons[np.array([bool(values.failure) for values in scores], dtype=bool)] = NOT_RENDERED
    return [Verdict(reason=reason) for reason in reasons]


def passes_first_look(
    candidates: Sequence[Candidate], scores: Sequence[PairScores], config: FilteringConfig
) -> list[bool]:
    """Decides by the scores of a first look which candidates are worth rendering in full."""
    return [not reason for reason in _reasons_by_type(_columns_of(scores), _types_of(candidates), _loosened(config))]


def judge_table(table: pa.Table, config: FilteringConfig) -> pa.Table:
    """Replaces earlier verdicts and limits the pairs per triplet. Keeps the order of the rows.

    Only rows that have a place keep the instruction that they show: others are asked about when they get one.
    """
    check_thresholds(config)
    judges = table["vlm_judge"].to_numpy(zero_copy_only=False)
    reasons = _judged(_columns_in(table), _types_in(table), judges, config)
    reasons[_first_looks(table)] = FIRST_LOOK
    reasons[_failures(table)] = NOT_RENDERED
    accepted = np.flatnonzero(reasons == "")
    reasons[accepted[_is_surplus(table.take(pa.array(accepted)), config)]] = OVER_LIMIT
    if config.vlm_rewrite:
        was_asked = table["shown_judge"].to_numpy(zero_copy_only=False) == shown_identity(config.vlm)
        reasons[(reasons == "") & ~was_asked] = OPEN
    columns = {"accepted": pa.array(reasons == "", pa.bool_()), "reason": pa.array(reasons, pa.string())}
    stays = pc.is_in(columns["reason"], pa.array(HAVE_PLACE))
    columns |= {name: pc.if_else(stays, pc.fill_null(table[name], ""), "") for name in SHOWN_COLUMNS}
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def has_place(reason: str) -> bool:
    """Returns whether a candidate takes one of its triplet's places: it is accepted, or may be once a judge answers."""
    return reason in HAVE_PLACE


def may_pass_now(table: pa.Table, config: FilteringConfig) -> pa.Array:
    """Marks rows that failed a first look under earlier thresholds and pass it now: they must be rendered in full."""
    reasons = _reasons_by_type(_columns_in(table), _types_in(table), _loosened(config))
    return pa.array((reasons == "") & _first_looks(table))


def check_thresholds(config: FilteringConfig) -> None:
    """Raises ValueError for a threshold that no score has, and lists those that exist."""
    names = [bound.threshold for bound in BOUNDS.values()]
    sections = {f"per_edit_type.{kind}": limits for kind, limits in config.per_edit_type.items()}
    for section, limits in {"thresholds": config.thresholds, **sections}.items():
        for name in limits.further:
            if name not in names:
                raise ValueError(
                    f"filtering.{section}.further sets {name}, which no score understands. "
                    f"Known are: {', '.join(names)}."
                )
        judged = [bound.threshold for bound in BOUNDS.values() if bound.score.is_asked]
        if not config.vlm.model and (unasked := [name for name in judged if name in limits.bounds]):
            raise ValueError(f"filtering.{section}.{unasked[0]} needs a judge. Set filtering.vlm.model.")


def thresholds_for(config: FilteringConfig, edit_type: str) -> Thresholds:
    """Returns the edit type's own thresholds, or the general ones if it has none."""
    return config.per_edit_type.get(edit_type, config.thresholds)


def count_values(column: pa.ChunkedArray) -> dict[str, int]:
    """Counts each value of a column."""
    return {row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()}


def count_verdicts(table: pa.Table) -> dict[str, int]:
    """Counts `candidates`, `accepted` and each reason."""
    counts = count_values(table["reason"])
    return {"candidates": len(table), "accepted": counts.pop("", 0), **dict(sorted(counts.items()))}


def count_shown(tables: Iterable[Path]) -> dict[str, int]:
    """Counts the accepted pairs by what the judge says that they show.

    `rewritten` pairs show another instruction than the written one, `as_written` the same; of `unnamed` it names none.
    """
    counts = {"rewritten": 0, "as_written": 0, "unnamed": 0}
    for path in tables:
        table = pq.ParquetFile(path).read(["edit_prompt", "accepted", "shown_prompt"])
        pairs = table.filter(table["accepted"])
        is_left_out = "shown_prompt" not in pairs.column_names  # as a column without a value is
        prompts = pa.array([""] * len(pairs), pa.string()) if is_left_out else pc.fill_null(pairs["shown_prompt"], "")
        unnamed = pc.sum(pc.equal(prompts, "")).as_py() or 0
        as_written = pc.sum(pc.equal(prompts, pairs["edit_prompt"])).as_py() or 0
        for name, num in zip(counts, (len(pairs) - as_written - unnamed, as_written, unnamed), strict=True):
            counts[name] += num
    return counts


def num_places_by_triplet(table: pa.Table) -> dict[str, tuple[int, int]]:
    """Counts (candidates, those that have a place) of each triplet of a table."""
    places = pa.table({"triplet_id": table["triplet_id"], "place": pc.is_in(table["reason"], pa.array(HAVE_PLACE))})
    sums = places.group_by("triplet_id").aggregate([("place", "count"), ("place", "sum")])
    columns = (sums[name].to_pylist() for name in ("triplet_id", "place_count", "place_sum"))
    return {triplet_id: (num, num_accepted) for triplet_id, num, num_accepted in zip(*columns, strict=True)}


def _loosened(config: FilteringConfig) -> FilteringConfig:
    """Moves every bound outwards by the slack of a first look."""
    slack = config.first_look_slack

    def loosen(limits: Thresholds) -> Thresholds:
        moves = {bound.threshold: slack if bound.side == "high" else -slack for bound in BOUNDS.values()}
        return limits.with_bounds({name: value + moves[name] for name, value in limits.bounds.items()})

    per_edit_type = {kind: loosen(limits) for kind, limits in config.per_edit_type.items()}
    return replace(config, thresholds=loosen(config.thresholds), per_edit_type=per_edit_type)


def _columns_of(scores: Sequence[PairScores]) -> dict[str, np.ndarray]:
    """Returns a batch's values by score; NaN if not measured."""
    return {name: np.array([values.get(name) for values in scores], dtype=float) for name in SCORES}


def _columns_in(table: pa.Table) -> dict[str, np.ndarray]:
    """Returns a table's values by score; a null becomes NaN."""
    return {name: table[score.column].to_numpy() for name, score in SCORES.items()}


def _types_of(candidates: Sequence[Candidate]) -> np.ndarray:
    return np.array([candidate.triplet.edit_type for candidate in candidates], dtype=str)


def _types_in(table: pa.Table) -> np.ndarray:
    return table["edit_type"].to_numpy(zero_copy_only=False).astype(str)  # type: ignore[no-any-return]


def _first_looks(table: pa.Table) -> np.ndarray:
    return np.array(pc.fill_null(table["first_look"], False), dtype=bool)


def _failures(table: pa.Table) -> np.ndarray:
    """Marks rows that could not be rendered."""
    return np.array(pc.not_equal(pc.fill_null(table["failure"], ""), ""), dtype=bool)


def _judged(
    columns: dict[str, np.ndarray], edit_types: np.ndarray, judges: np.ndarray, config: FilteringConfig
) -> np.ndarray:
    """Returns the reasons by all scores; a row that passes the others is open until the configured judge was asked."""
    if not config.vlm.model:
        return _reasons_by_type(columns, edit_types, config)
    was_asked = judges == judge_identity(config.vlm)
    judged = [name for name, score in SCORES.items() if score.is_asked]
    columns = columns | {name: np.where(was_asked, columns[name], np.nan) for name in judged}
    reasons = _reasons_by_type(columns, edit_types, config)
    passes = reasons == ""
    reasons[passes & np.isnan([columns[name] for name in judged]).any(0)] = UNREAD
    reasons[passes & ~was_asked] = OPEN
    return reasons


def _reasons_by_type(columns: Mapping[str, np.ndarray], edit_types: np.ndarray, config: FilteringConfig) -> np.ndarray:
    """Returns the reason of each row by the thresholds of its edit type; "" if it is accepted."""
    names, kind = np.unique(edit_types, return_inverse=True)
    return _reasons(columns, [thresholds_for(config, str(name)) for name in names], kind)


def _reasons(columns: Mapping[str, np.ndarray], limits: Sequence[Thresholds], kind: np.ndarray) -> np.ndarray:
    """Returns the reason of each row by the `kind`-th of the thresholds; "" if it is accepted."""
    reasons = np.full(len(kind), "", dtype=object)
    bounds_of_kinds = [thresholds.bounds for thresholds in limits]
    for reason, bound in reversed(BOUNDS.items()):  # so that the first in order wins
        if not any(bound.threshold in bounds for bounds in bounds_of_kinds):
            continue
        unbound = math.inf if bound.side == "high" else -math.inf
        limit = np.array([bounds.get(bound.threshold, unbound) for bounds in bounds_of_kinds])[kind]
        values = columns[bound.score.name]
        keeps = (values <= limit) if bound.side == "high" else (values >= limit)  # False for NaN
        if bound.score.passes_unmeasured or bound.score.is_asked:
            keeps |= np.isnan(values)
        reasons[~keeps & np.isfinite(limit)] = reason
    return reasons


def _is_surplus(accepted: pa.Table, config: FilteringConfig) -> np.ndarray:
    """Returns True for rows past `max_pairs_per_triplet`, ranked by direction or by number."""
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
"""Parts of equal width of a range that is drawn from."""

Rates = list[dict[str, Any]]
"""Rows of `candidates`, `accepted` and `rate` (None without candidates), with the `name` of a type or `low`, `high`."""


def measure_acceptance(tables: Iterable[Path], config: RenderingConfig) -> dict[str, Rates]:
    """Measures the accepted share of all candidates in tables of candidates.

    `edit_type` lists the types. Each range that is drawn from, `p2p` or, if an edit type has its own, `p2p, add`, lists
    five parts of equal width.
    """
    ranges = _ranges(config)
    by_type: dict[str, list[int]] = {}
    by_value = {key: np.zeros((2, NUM_BINS), dtype=int) for key in ranges}
    for path in tables:
        drawn = ((name, pa.float64()) for name in {name for name, _ in ranges})
        table = pq.read_table(path, schema=pa.schema([("edit_type", pa.string()), ("accepted", pa.bool_()), *drawn]))
        accepted, kinds = table["accepted"].to_numpy(), _types_in(table)
        for name in np.unique(kinds):
            tally = by_type.setdefault(str(name), [0, 0])
            tally[0] += int((kinds == name).sum())
            tally[1] += int(((kinds == name) & accepted).sum())
        for (name, own), bounds in ranges.items():
            values, is_drawn = table[name].to_numpy(), _draws_from(config, kinds, name, own)
            for row, drawn in enumerate((values[is_drawn], values[is_drawn & accepted])):
                by_value[name, own][row] += np.histogram(drawn, NUM_BINS, bounds)[0]
    rates = {"edit_type": [{"name": name, **_rate(*tally)} for name, tally in sorted(by_type.items())]}
    for (name, own), bounds in ranges.items():
        edges = np.linspace(*bounds, NUM_BINS + 1).round(4).tolist()
        rates[f"{name}, {own}" if own else name] = [
            {"low": low, "high": high, **_rate(int(num), int(num_accepted))}
            for low, high, num, num_accepted in zip(edges[:-1], edges[1:], *by_value[name, own], strict=True)
        ]
    return rates


def _ranges(config: RenderingConfig) -> dict[tuple[str, str], tuple[float, float]]:
    """Returns the ranges with any width by setting and edit type; "" stands for the general range."""
    sections = {"": config, **dict(sorted(config.per_edit_type.items()))}
    names = [name for name in DRAWN_COLUMNS if config.draws(name)]
    ranges = {(name, own): getattr(section, name) for name in names for own, section in sections.items()}
    return {key: bounds for key, bounds in ranges.items() if bounds is not None and bounds[0] < bounds[1]}


def _draws_from(config: RenderingConfig, kinds: np.ndarray, name: str, own: str) -> np.ndarray:
    """Marks rows that draw a setting from the range of an edit type, or from the general one."""
    if own:
        return np.asarray(kinds == own)
    others = [kind for kind, section in config.per_edit_type.items() if getattr(section, name) is not None]
    return np.asarray(~np.isin(kinds, others))


def _rate(num: int, num_accepted: int) -> dict[str, float | None]:
    return {"candidates": num, "accepted": num_accepted, "rate": round(num_accepted / num, 4) if num else None}
