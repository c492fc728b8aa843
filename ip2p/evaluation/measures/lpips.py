"""LPIPS (Zhang et al., 2018) outside the area that an edit may change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ip2p.config import fingerprint
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import Column, Measure, Setup, Values, fit_to


@dataclass(frozen=True)
class LpipsMeasure(Measure):
    """Measures the distance to the input outside the mask, by the package of LPIPS' authors."""

    net: str
    device: str
    order = 50
    columns = (Column("lpips_kept", "LPIPS outside mask", "lower", "mean"),)

    @classmethod
    def from_setup(cls, setup: Setup) -> Self | None:
        """Makes the measure if a backbone is set."""
        return cls(setup.knobs.lpips, setup.knobs.device) if setup.knobs.lpips else None

    @property
    def identity(self) -> str:
        """Returns a hash of the backbone's name."""
        return fingerprint("lpips", self.net)

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns None if a case has no mask, or nothing outside it."""
        return [{"lpips_kept": self._outside_mask(*edit)} for edit in zip(cases, before, after, strict=True)]

    def _outside_mask(self, case: EditCase, before: Pixels, after: Pixels) -> float | None:
        from ip2p.models.perceptual import lpips_map

        if (kept := case.kept_area) is None:
            return None
        distances = lpips_map(self.net, self.device, before, fit_to(after, before), setting="evaluation.lpips")
        return float(distances[kept].mean())
