"""Turns records of single edits into figures: shares with intervals, means with bands, overall and by edit type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ip2p.evaluation.measures import columns

Record = Mapping[str, Any]
Figures = dict[str, Any]


def summarise(records: Sequence[Record], edit_types: Sequence[str] = ()) -> Figures:
    """Figures over all records, and under `by_type` over those of each edit type."""
    by_type = {
        kind: [record for record in records if record["edit_type"] == kind] for kind in types_of(records, edit_types)
    }
    return {**_figures(records), "by_type": {kind: _figures(group) for kind, group in by_type.items()}}


def _figures(records: Sequence[Record]) -> Figures:
    """A figure for every column that was measured, and None for those that always have their place."""
    measured = [
        column
        for column in columns().values()
        if column.always or any(record.get(column.name) is not None for record in records)
    ]
    share_names = [column.name for column in measured if column.kind == "share"]
    mean_names = [column.name for column in measured if column.kind == "mean"]
    return {"n": len(records), **shares(records, share_names), **means(records, mean_names)}


def types_of(records: Iterable[Record], edit_types: Sequence[str] = ()) -> list[str]:
    """Edit types that occur, in the given order, then those that it does not name."""
    occurring = {str(record["edit_type"]) for record in records}
    return [kind for kind in edit_types if kind in occurring] + sorted(occurring.difference(edit_types))


def shares(records: Sequence[Record], names: Sequence[str]) -> Figures:
    """Share of true values per column with its 95 % Wilson interval; None if nothing was judged."""
    figures: Figures = {}
    for name in names:
        values = [bool(record[name]) for record in records if record.get(name) is not None]
        figures[name] = sum(values) / len(values) if values else None
        figures[f"{name}_interval"] = list(wilson_interval(sum(values), len(values))) if values else None
    return figures


def means(records: Sequence[Record], names: Sequence[str]) -> Figures:
    """Mean per column with its 95 % bootstrap band; None if there are no finite values."""
    figures: Figures = {}
    for name in names:
        values = [float(record[name]) for record in records if record.get(name) is not None]
        figures |= _mean_of([value for value in values if math.isfinite(value)], name)
    return figures


def _mean_of(values: Sequence[float], name: str) -> Figures:
    return {
        name: sum(values) / len(values) if values else None,
        f"{name}_interval": list(bootstrap_interval(values)) if values else None,
    }


def curve(records: Sequence[Record], by: str = "image_guidance_scale") -> list[Figures]:
    """One point per value of a setting, in rising order: what is kept against what is changed (paper, figure 8)."""
    values = sorted({float(record[by]) for record in records})
    return [{by: value, **_figures([record for record in records if record[by] == value])} for value in values]


def paired(one: Sequence[Record], other: Sequence[Record]) -> Figures:
    """Compares two editors on the cases of both: how often only one succeeds, and the second's gain in direction.

    `p` is McNemar's, exact and two-sided; the gain has its bootstrap interval. A figure is None if nothing can be said.
    """
    pairs = _on_same_cases(one, other)
    judged = bool(pairs) and all(record.get("success") is not None for pair in pairs for record in pair)
    lost = sum(bool(first.get("success")) and not second.get("success") for first, second in pairs)
    won = sum(bool(second.get("success")) and not first.get("success") for first, second in pairs)
    gains = [gain for gain in _gains(pairs, "clip_direction") if math.isfinite(gain)]
    low, high = bootstrap_interval(gains) if gains else (None, None)
    return {
        "n": len(pairs),
        "lost": lost if judged else None,
        "won": won if judged else None,
        "p": mcnemar(lost, won) if judged else None,
        "difference": sum(gains) / len(gains) if gains else None,
        "low": low,
        "high": high,
    }


def differences(one: Sequence[Record], other: Sequence[Record], names: Sequence[str]) -> Figures:
    """The second's mean gain over the first in each column, on the cases that both edited, with its interval."""
    pairs = _on_same_cases(one, other)
    figures: Figures = {"n": len(pairs)}
    for name in names:
        figures |= _mean_of(_gains(pairs, name), name)
    return figures


def _on_same_cases(one: Sequence[Record], other: Sequence[Record]) -> list[tuple[Record, Record]]:
    by_case = {record["case"]: record for record in other}
    return [(record, by_case[record["case"]]) for record in one if record["case"] in by_case]


def _gains(pairs: Sequence[tuple[Record, Record]], name: str) -> list[float]:
    """The second's value less the first's, if both were measured."""
    measured = [pair for pair in pairs if all(record.get(name) is not None for record in pair)]
    return [float(second[name]) - float(first[name]) for first, second in measured]


Interval = tuple[float, float]

LARGEST_DRAW = 2_000_000
"""Numbers drawn at a time; resamples are drawn in turns so that memory stays small."""


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Score interval of a share; (0, 1) if nothing was tried."""
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in 0..{trials}, got {successes}.")
    if trials == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(
    values: Sequence[float] | npt.NDArray[np.float64], *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile interval of the mean; the same values give the same interval. NaN if there are none.

    The draws are those of `scipy.stats.bootstrap`, which takes no single value and is several times slower on few.
    """
    sample = np.asarray(values, np.float64)
    if sample.size == 0:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    per_turn = max(1, LARGEST_DRAW // sample.size)
    sizes = [min(per_turn, num_resamples - done) for done in range(0, num_resamples, per_turn)]
    means = np.concatenate([sample[rng.integers(0, sample.size, (size, sample.size))].mean(axis=1) for size in sizes])
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p of a split at least this uneven if both were alike; 1 if they never differ."""
    from scipy.stats import binomtest

    return float(binomtest(won, lost + won, 0.5).pvalue) if lost + won else 1.0
