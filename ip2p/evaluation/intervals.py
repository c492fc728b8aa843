"""How sure a figure is: Wilson intervals of shares, percentile bootstrap of means, McNemar's test of two editors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

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
