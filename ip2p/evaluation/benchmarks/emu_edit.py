"""Emu Edit's test set (Sheynin et al., 2023): captions of before and after, no target images."""

from __future__ import annotations

from ip2p.evaluation.benchmark_cases import table_edits
from ip2p.evaluation.benchmarks import Asked, Benchmark, SourceEdit
from ip2p.sources.columns import EMU_EDIT, fitting
from ip2p.sources.row import Table


class EmuEdit(Benchmark):
    """Compares with the input and the captions."""

    name = "emu_edit"
    order = 20
    words = "Emu Edit's protocol: against the input and the captions, which rewards doing nothing"
    published = {
        "clip_direction": "CLIP dir",
        "clip_image": "CLIP im",
        "clip_edited": "CLIP out",
        "l1_input": "L1",
        "dino_input": "DINO",
    }

    def read_table(self, table: Table, asked: Asked) -> list[SourceEdit] | None:
        """Reads the dataset's columns."""
        columns = fitting(EMU_EDIT, table.names)
        return None if columns is None else table_edits(table, columns)
