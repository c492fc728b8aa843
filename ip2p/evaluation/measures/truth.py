"""Distances to a right answer, and what became of the area that no right edit touches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ip2p.config import fingerprint
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import Column, Measure, Setup, Values, fit_to
from ip2p.evaluation.measures.change import mean_distance


@dataclass(frozen=True)
class TruthMeasure(Measure):
    """Measures L1 and squared L2 to the target, on a scale of 0 to 1, and SSIM to the input outside the mask."""

    order = 40
    columns = (
        Column("l1", "L1 ↔ target", "lower", "mean", shown="runs"),
        Column("l2", "L2 ↔ target", "lower", "mean", shown="runs"),
        Column("ssim_kept", "SSIM outside mask", "higher", "mean"),
    )
    identity = fingerprint("truth")

    @classmethod
    def from_setup(cls, setup: Setup) -> Self:
        """Makes it; edits without a truth have no values."""
        return cls()

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns what can be measured of each edit."""
        return [_against_truth(*edit) for edit in zip(cases, before, after, strict=True)]


def _against_truth(case: EditCase, before: Pixels, after: Pixels) -> Values:
    values: Values = {"l1": None, "l2": None, "ssim_kept": None}
    if case.target_image is not None:
        fitted = fit_to(after, case.target_image)
        values["l1"] = mean_distance(fitted, case.target_image)
        values["l2"] = mean_distance(fitted, case.target_image, 2)
    if case.mask is not None and not case.mask.all():
        values["ssim_kept"] = kept_ssim(before, fit_to(after, before), case.mask)
    return values


def kept_ssim(before: Pixels, after: Pixels, mask: npt.NDArray[np.bool_]) -> float | None:
    """Mean structural similarity outside a mask, computed as the filter does; None for pictures under 11 pixels."""
    from skimage.metrics import structural_similarity

    from ip2p.scoring.ssim import SMALLEST_SIDE, SSIM

    if min(before.shape[:2]) < SMALLEST_SIDE:
        return None
    _, similarity = structural_similarity(before, after, channel_axis=-1, full=True, **SSIM)  # type: ignore[no-untyped-call]
    return float(similarity[~mask].mean())
