"""Turns records of single edits into figures: shares with intervals, means with bands, overall and by edit type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ip2p.evaluation.measures import Column, columns

Record = Mapping[str, Any]
"""A row of scores.parquet."""
Figures = dict[str, Any]
"""Figures by name, as figures.json holds them."""


def select(records: Iterable[Record], **values: object) -> list[Record]:
    """Returns the records that have these values."""
    return [record for record in records if all(record[name] == value for name, value in values.items())]


def summarise(records: Sequence[Record], edit_types: Sequence[str] = (), further: Sequence[Column] = ()) -> Figures:
    """Computes the figures over all records, and under `by_type` those of each edit type.

    `further` are columns that no measure of the package declares.
    """
    by_type = {kind: _figures(select(records, edit_type=kind), further) for kind in types_of(records, edit_types)}
    return {**_figures(records, further), "by_type": by_type}


def _figures(records: Sequence[Record], further: Sequence[Column] = ()) -> Figures:
    """Computes a figure for every measured column, shares first; None for those that keep their place unmeasured."""
    figures: Figures = {"n": len(records)}
    for column in sorted((*columns().values(), *further), key=lambda column: column.kind == "mean"):
        values = [record[column.name] for record in records if record.get(column.name) is not None]
        if values or column.always:
            figures |= _share(column.name, values) if column.kind == "share" else _mean(column.name, values)
    return figures


def types_of(records: Iterable[Record], edit_types: Sequence[str] = ()) -> list[str]:
    """Lists the edit types that occur, in the given order, then those that it does not name."""
    occurring = {str(record["edit_type"]) for record in records}
    return [kind for kind in edit_types if kind in occurring] + sorted(occurring.difference(edit_types))


def _share(name: str, values: Sequence[bool]) -> Figures:
    """Computes the share of true values with its 95 % Wilson interval; None if nothing was judged."""
    return {
        name: sum(values) / len(values) if values else None,
        f"{name}_interval": list(wilson_interval(sum(values), len(values))) if values else None,
    }


def _mean(name: str, values: Iterable[float]) -> Figures:
    """Computes the mean of the finite values with its 95 % bootstrap interval; None if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return {
        name: sum(finite) / len(finite) if finite else None,
        f"{name}_interval": list(bootstrap_interval(finite)) if finite else None,
    }


def mean_of(values: Iterable[float | None]) -> float | None:
    """Averages the values that there are; None if there are none."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None


def curve(records: Sequence[Record], by: str = "image_guidance_scale") -> list[Figures]:
    """Returns the figures at each value of a setting, in rising order: kept against changed (paper, figure 8)."""
    values = sorted({float(record[by]) for record in records})
    return [{by: value, **_figures(select(records, **{by: value}))} for value in values]


def paired(one: Sequence[Record], other: Sequence[Record]) -> Figures:
    """Compares two editors on the cases of both: how often only one succeeds, and the second's gain in direction.

    `p` is McNemar's, exact and two-sided; the gain has its bootstrap interval. Figures without a measurement are None.
    """
    pairs = _on_same_cases(one, other)
    judged = bool(pairs) and all(record.get("success") is not None for pair in pairs for record in pair)
    lost = sum(bool(first.get("success")) and not second.get("success") for first, second in pairs)
    won = sum(bool(second.get("success")) and not first.get("success") for first, second in pairs)
    gain = _mean("gain", _gains(pairs, "clip_direction"))
    low, high = gain["gain_interval"] or (None, None)
    return {
        "n": len(pairs),
        "lost": lost if judged else None,
        "won": won if judged else None,
        "p": mcnemar(lost, won) if judged else None,
        "difference": gain["gain"],
        "low": low,
        "high": high,
    }


def differences(one: Sequence[Record], other: Sequence[Record], names: Sequence[str]) -> Figures:
    """Computes the second's mean gain over the first in each column, on the cases of both, with its interval."""
    pairs = _on_same_cases(one, other)
    figures: Figures = {"n": len(pairs)}
    for name in names:
        figures |= _mean(name, _gains(pairs, name))
    return figures


def _on_same_cases(one: Sequence[Record], other: Sequence[Record]) -> list[tuple[Record, Record]]:
    by_case = {record["case"]: record for record in other}
    return [(record, by_case[record["case"]]) for record in one if record["case"] in by_case]


def _gains(pairs: Sequence[tuple[Record, Record]], name: str) -> list[float]:
    """Subtracts the first's value from the second's wherever both were measured."""
    measured = [pair for pair in pairs if all(record.get(name) is not None for record in pair)]
    return [float(second[name]) - float(first[name]) for first, second in measured]


Interval = tuple[float, float]

LARGEST_DRAW = 2_000_000
"""Most numbers drawn at once, which bounds the memory."""


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Returns the score interval of a share; (0, 1) if nothing was tried."""
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
    """Returns the percentile interval of the mean, the same for the same values; NaN if there are none.

    `scipy.stats.bootstrap` draws alike, but refuses a single value and is several times slower on few values.
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
    """Returns the exact two-sided p of a split at least this uneven between equal editors; 1 if they never differ."""
    from scipy.stats import binomtest

    return float(binomtest(won, lost + won, 0.5).pvalue) if lost + won else 1.0
