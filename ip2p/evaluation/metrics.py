"""From records of single edits to figures: shares with intervals, means with bands, overall and by edit type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Record = Mapping[str, Any]
Figures = dict[str, Any]

JUDGED = ("success", "done", "kept", "legible")
"""Columns that a domain fills; None where there is no domain."""
SHARES = (*JUDGED, "no_op")
MEANS = (
    *("clip_original", "clip_edited", "clip_direction", "clip_image", "clip_target", "dino_input", "dino_target"),
    *("l1_input", "change", "l1", "l2", "ssim_kept", "lpips_kept", "vlm_followed", "vlm_kept", "vlm_quality", "vlm"),
)
"""Columns of numbers, each where it was measured."""
CLIP = ("clip_original", "clip_edited", "clip_direction", "clip_image")


def summarise(records: Sequence[Record], edit_types: Sequence[str] = ()) -> Figures:
    """Figures over all records, and under `by_type` over those of each edit type."""
    by_type = {
        kind: [record for record in records if record["edit_type"] == kind] for kind in types_of(records, edit_types)
    }
    return {**_figures(records), "by_type": {kind: _figures(some) for kind, some in by_type.items()}}


def _figures(records: Sequence[Record]) -> Figures:
    """Of what was measured, and always of the oracle and CLIP."""
    measured = {name for record in records for name in (*SHARES, *MEANS) if record.get(name) is not None}
    told_shares = [name for name in SHARES if name in measured or name in JUDGED]
    told_means = [name for name in MEANS if name in measured or name in CLIP]
    return {"n": len(records), **shares(records, told_shares), **means(records, told_means)}


def types_of(records: Iterable[Record], edit_types: Sequence[str] = ()) -> list[str]:
    """Edit types that occur, in the given order, then those that it does not name."""
    found = {str(record["edit_type"]) for record in records}
    return [kind for kind in edit_types if kind in found] + sorted(found.difference(edit_types))


def shares(records: Sequence[Record], columns: Sequence[str]) -> Figures:
    """Share of true values per column with its 95 % Wilson interval; None where nothing was judged."""
    figures: Figures = {}
    for column in columns:
        values = [bool(record[column]) for record in records if record.get(column) is not None]
        figures[column] = sum(values) / len(values) if values else None
        figures[f"{column}_interval"] = list(wilson_interval(sum(values), len(values))) if values else None
    return figures


def means(records: Sequence[Record], columns: Sequence[str]) -> Figures:
    """Mean per column with its 95 % bootstrap band; None where there are no finite values."""
    figures: Figures = {}
    for column in columns:
        values = [float(record[column]) for record in records if record.get(column) is not None]
        values = [value for value in values if math.isfinite(value)]
        figures[column] = sum(values) / len(values) if values else None
        figures[f"{column}_interval"] = list(bootstrap_interval(values)) if values else None
    return figures


def curve(records: Sequence[Record], by: str = "image_guidance_scale") -> list[Figures]:
    """One point per value of a setting, in rising order: what is kept against what is changed (paper, figure 8)."""
    values = sorted({float(record[by]) for record in records})
    return [{by: value, **_figures([record for record in records if record[by] == value])} for value in values]


def paired(one: Sequence[Record], other: Sequence[Record]) -> Figures:
    """Two editors on the cases that both edited: how often only one succeeds, and the second's gain in direction.

    `p` is McNemar's, exact and two-sided; the gain has its bootstrap interval. None where nothing can be said.
    """
    theirs = {record["case"]: record for record in other}
    both = [(record, theirs[record["case"]]) for record in one if record["case"] in theirs]
    judged = bool(both) and all(each.get("success") is not None for pair in both for each in pair)
    lost = sum(bool(a.get("success")) and not b.get("success") for a, b in both)
    won = sum(bool(b.get("success")) and not a.get("success") for a, b in both)
    steps = [b["clip_direction"] - a["clip_direction"] for a, b in both if _known(a) and _known(b)]
    low, high = bootstrap_interval(steps) if steps else (None, None)
    return {
        "n": len(both),
        "lost": lost if judged else None,
        "won": won if judged else None,
        "p": mcnemar(lost, won) if judged else None,
        "difference": sum(steps) / len(steps) if steps else None,
        "low": low,
        "high": high,
    }


def differences(one: Sequence[Record], other: Sequence[Record], columns: Sequence[str]) -> Figures:
    """The second's mean gain over the first in each column, on the cases that both have, with its interval."""
    theirs = {record["case"]: record for record in other}
    both = [(record, theirs[record["case"]]) for record in one if record["case"] in theirs]
    figures: Figures = {"n": len(both)}
    for column in columns:
        known = [(a[column], b[column]) for a, b in both if a.get(column) is not None and b.get(column) is not None]
        steps = [float(b) - float(a) for a, b in known]
        figures[column] = sum(steps) / len(steps) if steps else None
        figures[f"{column}_interval"] = list(bootstrap_interval(steps)) if steps else None
    return figures


def _known(record: Record) -> bool:
    value = record.get("clip_direction")
    return value is not None and math.isfinite(value)


Interval = tuple[float, float]

LARGEST_DRAW = 2_000_000
"""Numbers drawn at a time; resamples are drawn in turns so that memory stays small."""


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Score interval of a share; (0, 1) where nothing was tried."""
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in 0..{trials}, got {successes}.")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, weight = successes / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def bootstrap_interval(
    values: Sequence[float] | npt.NDArray[np.float64], *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile interval of the mean; the same values give the same interval. NaN where there are none."""
    sample = np.asarray(values, np.float64)
    if sample.size == 0:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    per_turn = max(1, LARGEST_DRAW // sample.size)
    sizes = [min(per_turn, num_resamples - done) for done in range(0, num_resamples, per_turn)]
    means = np.concatenate([sample[rng.integers(0, sample.size, (some, sample.size))].mean(axis=1) for some in sizes])
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p of as uneven a split or more, were both alike; 1 where they never differ."""
    from scipy.stats import binomtest

    return float(binomtest(won, lost + won, 0.5).pvalue) if lost + won else 1.0
