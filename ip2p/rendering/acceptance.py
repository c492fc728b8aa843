"""Which draws are accepted more often, by edit type and by every setting that is drawn: to narrow its range by."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ip2p.config import RenderingConfig
from ip2p.rendering.draws import DRAWN

NUM_BINS = 5


def measure_acceptance(tables: Iterable[Path], config: RenderingConfig) -> dict[str, list[dict[str, Any]]]:
    """Accepted of all candidates in tables of candidates.

    `edit_type` lists the types with their counts and rates; every setting that is drawn from a range, or from several,
    lists five parts of equal width from `low` to `high`.
    """
    edges = {name: found for name in DRAWN if (found := _edges(config, name)) is not None}
    by_type: dict[str, list[int]] = {}
    by_value = {name: np.zeros((2, NUM_BINS), dtype=int) for name in edges}
    for path in tables:
        table = pq.read_table(path, columns=["edit_type", "accepted", *edges])
        accepted = table["accepted"].to_numpy()
        types, place = np.unique(table["edit_type"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
        for number, name in enumerate(types):
            here = place == number
            tally = by_type.setdefault(str(name), [0, 0])
            tally[0] += int(here.sum())
            tally[1] += int((here & accepted).sum())
        for name, bins in edges.items():
            values = table[name].to_numpy()
            by_value[name] += [np.histogram(some, bins)[0] for some in (values, values[accepted])]
    rates = {"edit_type": [{"name": name, **_rate(*tally)} for name, tally in sorted(by_type.items())]}
    for name, bins in edges.items():
        rates[name] = [
            {"low": round(float(low), 4), "high": round(float(high), 4), **_rate(int(num), int(num_accepted))}
            for low, high, num, num_accepted in zip(bins[:-1], bins[1:], *by_value[name], strict=True)
        ]
    return rates


def _edges(config: RenderingConfig, name: str) -> np.ndarray | None:
    """Those of the parts; None where every candidate has the same value."""
    ranges = [getattr(config, name), *(getattr(own, name) for own in config.per_edit_type.values())]
    bounds = [bound for found in ranges if found is not None for bound in found]
    low, high = min(bounds), max(bounds)
    return None if low == high else np.linspace(low, high, NUM_BINS + 1)


def _rate(num: int, num_accepted: int) -> dict[str, Any]:
    return {
        "candidates": num,
        "accepted": num_accepted,
        "rate": round(num_accepted / num, 4) if num else None,
    }
