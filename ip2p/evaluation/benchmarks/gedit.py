"""GEdit-Bench (Liu et al., 2025): eleven types of edits, instructions in English and Chinese, judged as by VIEScore.

The questions are those of `ip2p.evaluation.measures.vlm`. As in the authors' scripts, each figure is the mean over the
task types of the mean over a type's edits, by language, over the full set and over the intersection, which a column
marks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from ip2p.evaluation.benchmark_cases import table_edits
from ip2p.evaluation.benchmarks import (
    Aggregate,
    Answer,
    Asked,
    Benchmark,
    Facts,
    Judged,
    Question,
    SourceEdit,
    facts_of,
)
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import Column, Values
from ip2p.evaluation.metrics import mean_of
from ip2p.picture_judge import ALONE, BOTH, QUESTIONS
from ip2p.sources.columns import fitting
from ip2p.sources.row import Row, Table

COLUMNS = {"original_image": "input_image", "edit_prompt": "instruction", "edit_type": "task_type"}
KEY, LANGUAGE, INTERSECTION = "key", "instruction_language", "Intersection_exist"
AREA = 512 * 512
"""Pixels of the pictures that the judge sees."""
YES = ("True", "true", "1")
SETS = ("full set", "intersection")


class GEdit(Benchmark):
    """Has a judge score semantics and quality."""

    name = "gedit"
    order = 40
    words = "GEdit-Bench's protocol: VIEScore's semantics, quality and their geometric mean, averaged over task types"
    columns = (
        Column("gedit_sc", "G_SC", "higher", "mean"),
        Column("gedit_pq", "G_PQ", "higher", "mean"),
        Column("gedit_o", "G_O", "higher", "mean"),
    )
    published = dict.fromkeys((column.name for column in columns), "")
    takes = ()
    needs = "averages by GEdit-Bench's languages and sets"
    questions = QUESTIONS

    def read_table(self, table: Table, asked: Asked) -> list[SourceEdit] | None:
        """Reads the dataset's columns."""
        own = {"key": KEY, "language": LANGUAGE}
        if fitting(COLUMNS | own, table.names) is None:
            return None
        return table_edits(table, COLUMNS, _read_facts, [KEY, LANGUAGE, INTERSECTION])

    def ask(self, case: EditCase, before: Pixels, after: Pixels) -> list[Question]:
        """Asks about both pictures, then about the edited one alone, both at the same size."""
        original = Image.fromarray(before)
        size = judged_size(*original.size)
        pictures = [original.resize(size), Image.fromarray(after).resize(size)]
        both = BOTH.format(instruction=case.edit_prompt)
        return [
            Question(pictures=pictures, text=both, scores=("followed", "kept"), low=0, high=10),
            Question(pictures=pictures[1:], text=ALONE, scores=("natural", "clean"), low=0, high=10),
        ]

    def values(self, case: EditCase, answers: Sequence[Answer]) -> Values:
        """Takes the lower score of each question, and their geometric mean."""
        semantics, quality = (None if scores is None else min(scores) for scores in answers)
        is_scored = semantics is not None and quality is not None
        return {
            "gedit_sc": semantics,
            "gedit_pq": quality,
            "gedit_o": math.sqrt((semantics or 0) * (quality or 0)) if is_scored else None,
        }

    def aggregate(self, edits: Sequence[Judged]) -> list[Aggregate]:
        """Averages over types, by language and set; the averages by type are not headlines."""
        groups: dict[tuple[str, str], list[Judged]] = defaultdict(list)
        for case, values in edits:
            texts = facts_of(case).texts
            groups[texts["language"], SETS[0]].append((case, values))
            groups[texts["language"], SETS[1]] += [(case, values)] if texts["intersection"] in YES else []
        figures = [
            figure
            for (language, name), judged in sorted(groups.items())
            for column in self.columns
            for figure in _over_types(f"{language}, {name}, {column.title}", column.name, judged)
        ]
        return sorted(figures, key=lambda figure: not figure.is_headline)

    def outputs(self, case: EditCase, edited: Pixels) -> Mapping[str, Pixels]:
        """Returns the edited picture and, as the script wants it beside it, the original."""
        name = facts_of(case).output
        return {name: edited, f"{name.removesuffix('.png')}_SRCIMG.png": np.asarray(case.original_image)}


def _read_facts(row: Row, texts: dict[str, str]) -> Facts:
    key, language = row.text(KEY), row.text(LANGUAGE)
    return Facts(
        output=f"fullset/{texts['edit_type']}/{language}/{key}.png",
        texts={"language": language, "intersection": row.text(INTERSECTION)},
    )


def _over_types(label: str, name: str, edits: Sequence[Judged]) -> list[Aggregate]:
    by_type: dict[str, list[float]] = defaultdict(list)
    for case, values in edits:
        by_type[case.edit_type] += [score] if (score := values[name]) is not None else []
    averages = {kind: mean_of(scores) for kind, scores in sorted(by_type.items())}
    types = [
        Aggregate(label=f"{label}, {kind}", value=value, n=len(by_type[kind]), is_headline=False)
        for kind, value in averages.items()
    ]
    return [Aggregate(label=label, value=mean_of(averages.values()), n=sum(map(len, by_type.values()))), *types]


def judged_size(width: int, height: int) -> tuple[int, int]:
    """Scales (width, height) to the area that the judge sees, both rounded down."""
    scaled = math.sqrt(AREA * width / height)
    return int(scaled), int(scaled * height / width)
