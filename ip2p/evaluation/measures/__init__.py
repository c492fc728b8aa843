"""What is measured of an edit: each module of this package is one measure, found by walking the package.

A measure declares its columns once: name, title, whether higher or lower is better, and whether their figures are
shares or means. Figures, report, comparisons and benchmark tables derive from that, without importing any model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from PIL import Image

from ip2p.config import EvaluationConfig, ScoringConfig
from ip2p.evaluation.cases import Domain, EditCase, Pixels
from ip2p.plugins import classes_in

Values = dict[str, float | bool | None]
"""One edit's value in each column; None if the case lacks the ground truth."""
Better = Literal["higher", "lower"]
ARROWS: dict[Better | None, str] = {"higher": " ↑", "lower": " ↓", None: ""}


@dataclass(frozen=True, slots=True)
class Column:
    """One value of each edit, and the figure that summarises it."""

    name: str
    """Name in scores.parquet and in figures.json."""
    title: str
    """Title in every table."""
    better: Better | None
    kind: Literal["share", "mean"]
    """`share` if the values are yes or no, `mean` if they are numbers."""
    shown_in: Literal["everywhere", "runs", "nowhere"] = "everywhere"
    """Tables that show it if it was measured: all; those of runs and of protocols that report it; none."""
    always: bool = False
    """Appears in figures.json as None if it was not measured."""

    @property
    def heading(self) -> str:
        """Returns the title with an arrow towards the better values."""
        return self.title + ARROWS[self.better]

    @property
    def type(self) -> pa.DataType:
        """Returns its type in scores.parquet."""
        return pa.bool_() if self.kind == "share" else pa.float64()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Settings that measures are made from."""

    knobs: EvaluationConfig
    clip: ScoringConfig
    """CLIP that judges."""
    folder: Path
    """Folder of the evaluation, for anything that a measure stores."""
    notes: Path
    """Folder that notes the content of models, see `ip2p.sources.content`."""
    domain: Domain | None = None
    dino_model: str | None = None


class Measure(ABC):
    """Values of one kind, each measured from the case, the picture before and the picture after."""

    columns: ClassVar[tuple[Column, ...]]
    order: ClassVar[int]
    """Rank among the measures, which orders the columns of every table, lowest first."""
    edits_only: ClassVar[bool] = False
    """True for a slow measure, which skips sweeps and grids."""

    @classmethod
    def from_setup(cls, setup: Setup) -> Self | None:
        """Makes the measure; None if the settings do not ask for it. Default: whatever they are."""
        return cls()

    @property
    @abstractmethod
    def identity(self) -> str:
        """Returns a hash of what determines the values: if it changes, the measure is repeated, but no edit."""

    @abstractmethod
    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns one row per edit; the picture after may differ in size from the one before."""


@cache
def measure_classes() -> tuple[type[Measure], ...]:
    """Returns the measure of every module of this package, in order."""
    classes = classes_in(__name__, __path__, Measure)  # type: ignore[type-abstract]
    return tuple(sorted(classes, key=lambda measure: measure.order))


@cache
def columns() -> dict[str, Column]:
    """Returns the columns of all measures by name, in order."""
    return {column.name: column for measure in measure_classes() for column in measure.columns}


def set_up_measures(setup: Setup) -> list[Measure]:
    """Makes the measures that the settings ask for."""
    return [measure for cls in measure_classes() if (measure := cls.from_setup(setup)) is not None]


def targets_of(cases: Sequence[EditCase]) -> dict[int, Pixels]:
    """Returns the target images of the cases that have one, by their numbers."""
    return {number: target for number, case in enumerate(cases) if (target := case.target_image) is not None}


def as_images(arrays: Sequence[Pixels]) -> list[Image.Image]:
    """Converts pixels for models that take Pillow images."""
    return [Image.fromarray(array) for array in arrays]


def fit_to(image: Pixels, target: Pixels) -> Pixels:
    """Resizes a picture to the size of another with Pillow's default filter, as MagicBrush's own evaluation does."""
    if image.shape == target.shape:
        return image
    return np.asarray(Image.fromarray(image).resize(target.shape[1::-1]))
