"""What is measured of an edit: each module of this package is one measure, found by walking the package.

A measure declares its columns once: name, title, which way is better, and whether their figures are shares or means.
Figures, report, comparison and benchmark tables are derived from that. Titles can be read without a heavy import.
"""

from __future__ import annotations

import importlib
import pkgutil
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

Values = dict[str, float | bool | None]
"""One edit's value in each column; None if the case has no truth for it."""
Better = Literal["higher", "lower"]
ARROWS: dict[Better | None, str] = {"higher": " ↑", "lower": " ↓", None: ""}


@dataclass(frozen=True, slots=True)
class Column:
    """One measured value of an edit and the figure that its values add up to."""

    name: str
    """Name in scores.parquet and in figures.json."""
    title: str
    """Title in every table."""
    better: Better | None
    kind: Literal["share", "mean"]
    """`share` if the values are yes or no, `mean` if they are numbers."""
    shown: Literal["everywhere", "runs", "nowhere"] = "everywhere"
    """Tables that show it if it was measured: all; those of runs and of the protocols that name it; none."""
    always: bool = False
    """Keeps its place in figures.json as None if nothing measured it."""

    @property
    def heading(self) -> str:
        """The title with an arrow towards the better values."""
        return self.title + ARROWS[self.better]

    @property
    def type(self) -> pa.DataType:
        """Type in scores.parquet."""
        return pa.bool_() if self.kind == "share" else pa.float64()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Settings that measures are made from."""

    knobs: EvaluationConfig
    clip: ScoringConfig
    """The CLIP that judges."""
    folder: Path
    """Folder of the evaluation, for what a measure has to keep."""
    domain: Domain | None = None
    dino_model: str | None = None


class Measure(ABC):
    """One kind of values, all of them taken from the case, the picture before and the picture after."""

    columns: ClassVar[tuple[Column, ...]]
    order: ClassVar[int]
    """Place among the measures, from low to high: the order of columns and tables."""
    edits_only: ClassVar[bool] = False
    """True for a slow measure, which leaves out sweeps and grids."""

    @classmethod
    @abstractmethod
    def from_setup(cls, setup: Setup) -> Self | None:
        """Makes the measure; None if the settings do not ask for it."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Hash of what decides the values, so that another judge measures anew without editing anew."""

    @abstractmethod
    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns one row per edit; the picture after may be smaller than the one before."""


@cache
def measure_classes() -> tuple[type[Measure], ...]:
    """Every measure that a module of this package defines, in order."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    classes = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Measure) and value.__module__ == module.__name__
    ]
    return tuple(sorted(classes, key=lambda measure: measure.order))


@cache
def columns() -> dict[str, Column]:
    """Every column of every measure by name, in order."""
    return {column.name: column for measure in measure_classes() for column in measure.columns}


def set_up_measures(setup: Setup) -> list[Measure]:
    """Makes the measures that the settings ask for."""
    return [measure for cls in measure_classes() if (measure := cls.from_setup(setup)) is not None]


def as_images(arrays: Sequence[Pixels]) -> list[Image.Image]:
    """Converts pixels for models that take Pillow images."""
    return [Image.fromarray(array) for array in arrays]


def fit_to(image: Pixels, target: Pixels) -> Pixels:
    """Resizes a picture to the size of another with Pillow's default filter, as MagicBrush's own evaluation does."""
    if image.shape == target.shape:
        return image
    return np.asarray(Image.fromarray(image).resize(target.shape[1::-1]))
