"""Distances to a target image, and how well the area that the edit must not change was preserved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ip2p.config import fingerprint
from ip2p.evaluation.cases import EditCase, Mask, Pixels
from ip2p.evaluation.measures import Column, Measure, Values, fit_to
from ip2p.evaluation.measures.change import mean_distance
from ip2p.scoring.ssim import SMALLEST_SIDE, SSIM


@dataclass(frozen=True)
class TruthMeasure(Measure):
    """Measures L1 and squared L2 to the target, on a scale of 0 to 1, and SSIM to the input outside the mask."""

    order = 40
    columns = (
        Column("l1", "L1 ↔ target", "lower", "mean", shown_in="runs"),
        Column("l2", "L2 ↔ target", "lower", "mean", shown_in="runs"),
        Column("ssim_kept", "SSIM outside mask", "higher", "mean"),
    )
    identity = fingerprint("truth")

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns None for distances to a target and for a similarity outside a mask that a case lacks."""
        rows: list[Values] = []
        for case, original, edited in zip(cases, before, after, strict=True):
            values: Values = {"l1": None, "l2": None, "ssim_kept": None}
            if (target := case.target_image) is not None:
                fitted = fit_to(edited, target)
                values["l1"] = mean_distance(fitted, target)
                values["l2"] = mean_distance(fitted, target, 2)
            if (kept := case.kept_area) is not None:
                values["ssim_kept"] = kept_ssim(original, fit_to(edited, original), kept)
            rows.append(values)
        return rows


def kept_ssim(before: Pixels, after: Pixels, kept: Mask) -> float | None:
    """Computes the mean structural similarity of an area as the filter does; None for pictures under 11 pixels."""
    from skimage.metrics import structural_similarity

    if min(before.shape[:2]) < SMALLEST_SIDE:
        return None
    _, similarity = structural_similarity(before, after, channel_axis=-1, full=True, **SSIM)
    return float(similarity[kept].mean())
