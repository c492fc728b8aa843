"""How well an edit kept what is outside the area that it changed, which the pictures before and after show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from PIL import Image

from ip2p.config import fingerprint
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import Column, Measure, Setup, Values, fit_to
from ip2p.scoring.frame import frame_of
from ip2p.scoring.regions import area_of, compare_regions


@dataclass(frozen=True)
class RegionsMeasure(Measure):
    """Measures the similarity outside the changed area, and how large that area is."""

    order = 45
    columns = (
        Column("ssim_outside", "SSIM outside change", "higher", "mean", shown_in="runs"),
        Column("colour_outside", "Colour outside change", "lower", "mean", shown_in="runs"),
        Column("changed_share", "Changed share", None, "mean", shown_in="nowhere"),
    )
    identity = fingerprint("regions")

    @classmethod
    def from_setup(cls, setup: Setup) -> Self | None:
        """Makes the measure if `evaluation.regions` is set."""
        return cls() if setup.knobs.regions else None

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns None outside an area that is the whole picture, and for pictures under 11 pixels."""
        rows: list[Values] = []
        for original, edited in zip(before, after, strict=True):
            pair = Image.fromarray(original), Image.fromarray(fit_to(edited, original))
            regions = compare_regions(*pair, area_of(*pair, frame_of(*pair)))
            values = {column.name: float(getattr(regions, column.name)) for column in self.columns}
            rows.append({name: None if math.isnan(value) else value for name, value in values.items()})
        return rows
