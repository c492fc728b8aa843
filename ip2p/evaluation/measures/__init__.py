"""What is measured of an edit: columns that need no more than the case, the picture before and the picture after.

Each measure names its columns and says what decides their values, so that another judge measures anew without editing
anew. Values that a case has no truth for are None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from ip2p.config import fingerprint
from ip2p.evaluation.cases import Domain, EditCase, Pixels

Row = dict[str, Any]
NUMBER, FLAG, TEXT = pa.float64(), pa.bool_(), pa.string()

BLOCKS = 12
"""Blocks a side, over which a change is averaged."""
LEAST_CHANGE = 0.1
"""Mean difference of a block, of a range of 1, below which it counts as unchanged. Of 420 pictures of the shapes domain
its autoencoder alone changes no block by more than 0.097, and no right edit leaves all of them below 0.112."""


class Measure(Protocol):
    """One kind of figures."""

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Names and types."""
        ...

    @property
    def identity(self) -> str:
        """Hash of what decides the values."""
        ...

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Row]:
        """A row per edit; the picture after may be smaller than the one before."""
        ...


@dataclass(frozen=True)
class OracleMeasure:
    """The domain's word."""

    name: str
    domain: Domain

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Success is done and kept."""
        return dict.fromkeys(("success", "done", "kept", "legible"), FLAG)

    @property
    def identity(self) -> str:
        """The domain's name."""
        return fingerprint("oracle", self.name)

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Row]:
        """A verdict per edit."""
        fitted = map(fit_to, after, before)
        verdicts = [self.domain.judge_case(case, image) for case, image in zip(cases, fitted, strict=True)]
        return [{name: getattr(verdict, name) for name in self.columns} for verdict in verdicts]


@dataclass(frozen=True)
class ChangeMeasure:
    """How much of the input is left, by pixels."""

    columns = {"l1_input": NUMBER, "change": NUMBER, "no_op": FLAG}
    identity = fingerprint("change", BLOCKS, LEAST_CHANGE)

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Row]:
        """Mean difference, that of the block that changed most, and whether even that is next to nothing."""
        return [_change(one, fit_to(other, one)) for one, other in zip(before, after, strict=True)]


def _change(before: Pixels, after: Pixels) -> Row:
    most = largest_change(before, after)
    return {"l1_input": mean_distance(before, after), "change": most, "no_op": most < LEAST_CHANGE}


def mean_distance(one: Pixels, other: Pixels, power: int = 1) -> float:
    """Mean absolute (or, with power 2, squared) difference of a range of 1."""
    return float(((np.abs(one.astype(np.float64) - other) / 255) ** power).mean())


def largest_change(before: Pixels, after: Pixels) -> float:
    """Mean absolute difference of the block that changed most, in [0, 1]."""
    difference = np.abs(before.astype(np.float64) - after).mean(-1) / 255
    rows, columns = (_starts(length) for length in difference.shape)
    sums = np.add.reduceat(np.add.reduceat(difference, rows, 0), columns, 1)
    areas = np.outer(np.diff([*rows, difference.shape[0]]), np.diff([*columns, difference.shape[1]]))
    return float((sums / areas).max())


def _starts(length: int) -> npt.NDArray[np.intp]:
    return np.unique(np.arange(min(BLOCKS, length)) * length // min(BLOCKS, length))


@dataclass(frozen=True)
class TruthMeasure:
    """Distances to a right answer, and what became of the area that no right edit touches."""

    columns = {"l1": NUMBER, "l2": NUMBER, "ssim_kept": NUMBER}
    identity = fingerprint("truth")

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Row]:
        """L1 and L2 to the target; SSIM to the input outside the mask."""
        return [_against_truth(*each) for each in zip(cases, before, after, strict=True)]


def _against_truth(case: EditCase, before: Pixels, after: Pixels) -> Row:
    row: Row = dict.fromkeys(TruthMeasure.columns)
    if case.target_image is not None:
        fitted = fit_to(after, case.target_image)
        row |= {"l1": mean_distance(fitted, case.target_image), "l2": mean_distance(fitted, case.target_image, 2)}
    if case.mask is not None and not case.mask.all():
        row["ssim_kept"] = kept_ssim(before, fit_to(after, before), case.mask)
    return row


def fit_to(image: Pixels, target: Pixels) -> Pixels:
    """A picture in the size of another, by Pillow's default, as MagicBrush's own evaluation has it."""
    if image.shape == target.shape:
        return image
    return np.asarray(Image.fromarray(image).resize(target.shape[1::-1]))


def kept_ssim(before: Pixels, after: Pixels, mask: npt.NDArray[np.bool_]) -> float | None:
    """Mean structural similarity outside a mask, as the filter has it; None for pictures under 11 pixels."""
    from skimage.metrics import structural_similarity

    from ip2p.scoring.pictures import SMALLEST_SIDE, SSIM

    if min(before.shape[:2]) < SMALLEST_SIDE:
        return None
    _, similar = structural_similarity(before, after, channel_axis=-1, full=True, **SSIM)  # type: ignore[no-untyped-call]
    return float(similar[~mask].mean())


def as_images(arrays: Sequence[Pixels]) -> list[Image.Image]:
    """For models that take Pillow's."""
    return [Image.fromarray(array) for array in arrays]
