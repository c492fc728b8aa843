"""Which draws are accepted more often, by edit type and by every setting that is drawn: to narrow its range by."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ip2p.config import RenderingConfig
from ip2p.records import DRAWN_COLUMNS

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
