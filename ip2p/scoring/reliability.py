"""How reliably a judge tells right instructions from wrong ones: the area under its ROC curve, kept beside a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ip2p.store import read_json_or_empty, write_json

FILE = "judges.json"
"""The file of a run folder that holds what was measured."""
NUM_RESAMPLES = 1000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """The AUROC of a judge: the chance that a right instruction has a higher score than a wrong one."""

    auroc: float
    low: float
    """Lower end of the 95 % bootstrap interval, pairs drawn with both of their instructions."""
    high: float
    n: int
    """Pairs, each with a right and a wrong instruction that were both judged."""
    unjudged: int = 0
    """Pairs left out, since an answer was missing or held no score."""

    def __str__(self) -> str:
        """Writes it as it is printed everywhere."""
        left_out = f", {self.unjudged} unjudged" if self.unjudged else ""
        return f"AUROC {self.auroc:.3f} ({self.low:.3f} to {self.high:.3f}, n = {self.n}{left_out})"


def auroc(right: Floats, wrong: Floats) -> float:
    """Returns the share of (right, wrong) couples in which the right one scores higher; a tie counts half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([right, wrong]))[: len(right)]
    return float((ranks.sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong)))


def measure_reliability(right: Sequence[float | None], wrong: Sequence[float | None], seed: int = 0) -> Reliability:
    """Measures a judge by its scores of each pair's right and wrong instruction. ValueError if none has both."""
    scores = np.array([right, wrong], dtype=float)
    judged = scores[:, np.isfinite(scores).all(0)]
    num = judged.shape[1]
    if not num:
        raise ValueError(
            f"the judge gave no score to both instructions of any of {len(right)} pairs. Check its answers."
        )
    rng = np.random.default_rng(seed)
    draws = (judged[:, rng.integers(0, num, num)] for _ in range(NUM_RESAMPLES))
    low, high = np.quantile([auroc(*draw) for draw in draws], [0.025, 0.975])
    return Reliability(auroc=auroc(*judged), low=float(low), high=float(high), n=num, unjudged=scores.shape[1] - num)


def write_reliability(out: Path, judges: dict[str, Reliability]) -> None:
    """Adds what was measured of judges, by name, to a run folder."""
    write_json(out / FILE, read_json_or_empty(out / FILE) | {name: asdict(each) for name, each in judges.items()})


def read_reliability(out: Path) -> dict[str, Reliability]:
    """Returns what was measured of the judges of a run; empty if nothing was."""
    return {name: Reliability(**values) for name, values in read_json_or_empty(out / FILE).items()}
