"""The paper's curve over the image guidance (Brooks et al., 2023, figure 8), on pairs like ours."""

from __future__ import annotations

from collections.abc import Sequence

from ip2p.config import EvaluationConfig
from ip2p.evaluation.benchmark_cases import table_edits
from ip2p.evaluation.benchmarks import Asked, Benchmark, SourceEdit
from ip2p.evaluation.cases import EditCase
from ip2p.evaluation.parts import Part, sweep_slices
from ip2p.sources.columns import guess_columns
from ip2p.sources.row import Table

TEXTS = ("original_prompt", "edited_prompt", "edit_type")


class Curve(Benchmark):
    """Sweeps the image guidance."""

    name = "curve"
    order = 90
    words = "the paper's curve over the image guidance: how much is preserved against how much is changed"
    published = {"clip_direction": "", "clip_image": "", "clip_edited": ""}

    def read_table(self, table: Table, asked: Asked) -> list[SourceEdit] | None:
        """Reads pairs under the columns of any known dataset. ValueError for other columns."""
        try:
            columns = guess_columns(table.names)
        except ValueError as error:
            raise ValueError(f"{asked.source} is not a known benchmark: {error}") from error
        return table_edits(table, columns | {name: name for name in TEXTS if name in table.names})

    def plan(self, knobs: EvaluationConfig, names: Sequence[str], cases: Sequence[EditCase]) -> list[Part]:
        """Plans every editor on every case, then the sweeps."""
        numbers = list(range(len(cases)))
        sweeps = [part for name in names for part in sweep_slices(name, knobs, numbers)]
        return [*super().plan(knobs, names, cases), *sweeps]
