"""How much an edit changed the picture, by pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ip2p.config import fingerprint
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import Column, Measure, Values, fit_to

BLOCKS = 12
"""Blocks per side, over each of which a change is averaged."""
LEAST_CHANGE = 0.1
"""Mean difference of a block, on a scale of 0 to 1, below which it counts as unchanged. In 420 pictures of the shapes
domain, the autoencoder alone changes no block by more than 0.097, and every correct edit changes one by over 0.112."""


@dataclass(frozen=True)
class ChangeMeasure(Measure):
    """Measures the mean difference, that of the block that changed most, and whether no block changed."""

    order = 30
    columns = (
        Column("l1_input", "L1 ↔ input", "lower", "mean", shown_in="runs"),
        Column("change", "Largest change", None, "mean", shown_in="nowhere"),
        Column("no_op", "No change", "lower", "share"),
    )
    identity = fingerprint("change", BLOCKS, LEAST_CHANGE)

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns the three values of each edit."""
        rows: list[Values] = []
        for original, edited in zip(before, after, strict=True):
            fitted = fit_to(edited, original)
            change = largest_change(original, fitted)
            distance = mean_distance(original, fitted)
            rows.append({"l1_input": distance, "change": change, "no_op": change < LEAST_CHANGE})
        return rows


def mean_distance(one: Pixels, other: Pixels, power: int = 1) -> float:
    """Computes the mean absolute (or, for a power of 2, squared) difference on a scale of 0 to 1."""
    return float(((np.abs(one.astype(np.float64) - other) / 255) ** power).mean())


def largest_change(before: Pixels, after: Pixels) -> float:
    """Computes the mean absolute difference of the block that changed most, on a scale of 0 to 1."""
    difference = np.abs(before.astype(np.float64) - after).mean(-1) / 255
    sides = [(length, min(BLOCKS, length)) for length in difference.shape]
    rows, columns = (np.arange(blocks) * length // blocks for length, blocks in sides)
    sums = np.add.reduceat(np.add.reduceat(difference, rows, 0), columns, 1)
    areas = np.outer(np.diff([*rows, difference.shape[0]]), np.diff([*columns, difference.shape[1]]))
    return float((sums / areas).max())
