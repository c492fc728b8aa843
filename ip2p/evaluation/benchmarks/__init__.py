"""The benchmarks: each module of this package is one, found by walking the package.

A benchmark recognises its data by files or by columns, reads them as cases and names the columns that it reports. One
that judges by a vision-language model also has questions, turns answers into values and aggregates them by its rules.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from PIL import Image

from ip2p.config import EvaluationConfig
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.editors import Setting
from ip2p.evaluation.measures import Column, Values
from ip2p.evaluation.parts import Part, slices
from ip2p.plugins import classes_in
from ip2p.records import content_hash
from ip2p.sources.content import digest_of
from ip2p.sources.row import Table

TEXTS = ("edit_prompt", "original_prompt", "edited_prompt", "edit_type", "session")
"""Texts of a case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What only a benchmark knows of an edit; the case carries it as its payload."""

    output: str
    """Path, in a folder of outputs, under which the benchmark's own script looks for the edited picture."""
    texts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    """Further pictures."""

    def __post_init__(self) -> None:
        path = PurePosixPath(self.output)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"the output {self.output} would lie outside its folder. Rename the edit.")

    @property
    def identity(self) -> str:
        """Hashes the texts and the content of the files."""
        files = {name: digest_of(path) for name, path in self.files.items()}
        return content_hash(*sorted(self.texts.items()), *sorted(files.items()))


@dataclass(frozen=True, slots=True)
class SourceEdit:
    """An edit as it lies in a source: its texts, and how each picture is loaded."""

    texts: Mapping[str, str]
    pictures: Mapping[str, Callable[[], Any]]
    facts: Facts | None = None

    def as_case(self, previous: int | None, is_last: bool) -> EditCase:
        """Makes the case, at its place in a session."""
        fields: dict[str, Any] = {**dict.fromkeys(TEXTS, ""), **self.texts, **self.pictures}
        fields["edit_type"] = fields["edit_type"] or "other"
        return EditCase(**fields, payload=self.facts, previous=previous, is_last=is_last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The source that a user names."""

    source: str
    captions: Path | None = None
    """MagicBrush's file of local descriptions, if it is not in the source."""

    @property
    def path(self) -> Path:
        """Returns the source as a path, which need not exist."""
        return Path(self.source).expanduser()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a judge is asked about one edit, and the scores that its answer must hold."""

    pictures: Sequence[Image.Image]
    text: str
    scores: tuple[str, ...]
    low: float
    high: float


Answer = Sequence[float] | None
"""The scores of an answer, in the question's order; None if it held none or was refused."""
Judged = tuple[EditCase, Values]
"""An edit and its values by one repeat of the questions; None for those that the judge did not give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """A figure by the benchmark's own rules, of one repeat."""

    label: str
    value: float | None
    n: int
    """Scores that it averages."""
    is_headline: bool = True
    """True for what the command and the page show; the others are in figures.json alone."""


class Benchmark(ABC):
    """A published way of comparing editors, or ours, and the data that it is meant for."""

    name: ClassVar[str]
    """Name in `--protocol`."""
    order: ClassVar[int]
    """Rank among the benchmarks, lowest first: the first that recognises a source reads it."""
    words: ClassVar[str]
    published: ClassVar[Mapping[str, str]]
    """Columns that it reports, in its order, with its own short titles; "" for the column's title."""
    columns: ClassVar[tuple[Column, ...]] = ()
    """Columns of its own, which its judge's answers fill."""
    takes: ClassVar[tuple[str, ...] | None] = None
    """Other benchmarks whose data it can be applied to. None: all."""
    needs: ClassVar[str] = ""
    """What data that it cannot be applied to lack."""
    questions: ClassVar[tuple[str, ...]] = ()
    """All texts that questions are made from. Empty: no judge is asked."""

    def read(self, asked: Asked) -> list[SourceEdit] | None:
        """Reads a folder, a file or a word that it recognises; None for any other."""
        return None

    def read_table(self, table: Table, asked: Asked) -> list[SourceEdit] | None:
        """Reads a table that it recognises by the columns; None for any other."""
        return None

    def plan(self, knobs: EvaluationConfig, names: Sequence[str], cases: Sequence[EditCase]) -> list[Part]:
        """Plans the edits. Default: every editor, and the copy, on every case."""
        numbers = list(range(len(cases)))
        return [part for name in (*names, "copy") for part in slices(name, "edit", usual_setting(knobs), numbers)]

    def ask(self, case: EditCase, before: Pixels, after: Pixels) -> list[Question]:
        """Returns the questions about an edit."""
        return []

    def values(self, case: EditCase, answers: Sequence[Answer]) -> Values:
        """Computes the own columns from the answers to `ask`'s questions."""
        return {}

    def aggregate(self, edits: Sequence[Judged]) -> list[Aggregate]:
        """Computes the figures that the benchmark prints; the labels do not depend on the values."""
        return []

    def outputs(self, case: EditCase, edited: Pixels) -> Mapping[str, Pixels]:
        """Returns the pictures that the benchmark's own script reads, by their paths in a folder of outputs."""
        return {case.payload.output: edited} if isinstance(case.payload, Facts) else {}


def usual_setting(knobs: EvaluationConfig) -> Setting:
    """Returns the guidances outside the sweeps."""
    return Setting(guidance_scale=knobs.guidance_scale, image_guidance_scale=knobs.image_guidance_scale)


def facts_of(case: EditCase) -> Facts:
    """Returns what its benchmark knows of a case. TypeError if a case of other data is given."""
    if not isinstance(case.payload, Facts):
        raise TypeError(f"the case {case.edit_prompt!r} is not one of a judged benchmark")
    return case.payload


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Returns the benchmark of every module of this package by name, in order."""
    classes = sorted(classes_in(__name__, __path__, Benchmark), key=lambda benchmark: benchmark.order)
    return {cls.name: cls() for cls in classes}
