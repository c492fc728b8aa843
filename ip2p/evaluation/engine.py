"""Runs the parts of an evaluation that are missing: edits first, then figures; whatever is finished is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ip2p import store
from ip2p.config import EvaluationConfig, fingerprint
from ip2p.evaluation.cases import cases_table, fingerprint_case
from ip2p.evaluation.domain import EditCase
from ip2p.evaluation.editors import EditorSource
from ip2p.evaluation.measures import Measure
from ip2p.evaluation.metrics import Record
from ip2p.evaluation.parts import Part, fingerprint_edits, write_edits, write_measures

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """All that an evaluation has to do."""

    folder: Path
    knobs: EvaluationConfig
    cases: Sequence[EditCase]
    editors: Mapping[str, EditorSource]
    parts: Sequence[Part]
    measures: Sequence[Measure]
    slow_measures: Sequence[Measure] = ()
    """Of edits alone, not of sweeps and grids."""

    def measures_of(self, part: Part) -> list[Measure]:
        """All that are taken of a part."""
        return [*self.measures, *(self.slow_measures if part.kind in ("edit", "chain") else ())]

    def edits(self, part: Part) -> Path:
        """Where a part's pictures lie."""
        return self.folder / "edits" / f"{part.name}.parquet"

    def figures(self, part: Part) -> Path:
        """Where a part's figures lie; a row for each of its pictures, in the same order."""
        return self.folder / "parts" / f"{part.name}.parquet"


@dataclass(frozen=True, slots=True)
class Done:
    """What the finished parts say together."""

    records: list[Record]
    seconds: float
    """Of all parts, whenever they were made."""


def carry_out(
    work: Work,
    progress: Callable[[float], object] = lambda share: None,
    show: Callable[[Work], object] = lambda work: None,
) -> Done:
    """Makes what is missing and gathers `scores.parquet` and `cases.parquet`.

    `progress` hears the share of edits; `show` makes what goes by all of them, where one has changed.
    """
    edits = _edit_missing(work, progress)
    figures = _measure_missing(work, edits)
    asked = fingerprint([(part.name, sidecar.sha256) for part, sidecar in figures.items()])
    scores = work.folder / "scores.parquet"
    if store.finished(scores, asked) is None:
        store.write_shard(work.folder / "cases.parquet", cases_table(work.cases), fingerprint=asked, seconds=0.0)
        show(work)
        tables = [pq.read_table(work.figures(part)) for part in figures]
        store.write_shard(scores, pa.concat_tables(tables, promote_options="default"), fingerprint=asked, seconds=0.0)
    seconds = sum(sidecar.seconds for some in (edits, figures) for sidecar in some.values())
    return Done(pq.read_table(scores).to_pylist(), round(seconds, 3))


def _edit_missing(work: Work, progress: Callable[[float], object]) -> dict[Part, store.Sidecar]:
    hashes = [fingerprint_case(case) for case in work.cases]
    prints = {
        part: fingerprint_edits(part, hashes, work.editors[part.model].identity, work.knobs.seed) for part in work.parts
    }
    found = {part: store.finished(work.edits(part), prints[part]) for part in work.parts}
    todo = [part for part, sidecar in found.items() if sidecar is None]
    if len(todo) < len(found):
        logger.info("%d of %d parts were edited already", len(found) - len(todo), len(found))
    from ip2p.loading import unload_all

    total, num_done = sum(len(part.cases) for part in todo), 0
    with tqdm(total=total, desc="edit", unit="edit", disable=None if todo else True) as bar:

        def count(num: int) -> None:
            nonlocal num_done
            num_done += num
            bar.update(num)
            progress(num_done / total)

        for name in dict.fromkeys(part.model for part in todo):
            editor = work.editors[name].load()
            for part in (part for part in todo if part.model == name):
                made = write_edits(
                    work.edits(part),
                    part,
                    work.cases,
                    fingerprint=prints[part],
                    editor=editor,
                    seed=work.knobs.seed,
                    batch_size=work.knobs.batch_size,
                    progress=count,
                )
                logger.info("%s: %d edits in %.1f s", part.name, made.rows, made.seconds)
                found[part] = made
            del editor  # one model in memory at a time
            unload_all()
    return {part: sidecar for part, sidecar in found.items() if sidecar is not None}


def _measure_missing(work: Work, edits: Mapping[Part, store.Sidecar]) -> dict[Part, store.Sidecar]:
    found: dict[Part, store.Sidecar] = {}
    for part in tqdm(work.parts, desc="measure", unit="part", disable=None):
        measures = work.measures_of(part)
        asked = fingerprint(edits[part].sha256, [measure.identity for measure in measures])
        found[part] = store.finished(work.figures(part), asked) or write_measures(
            work.figures(part),
            work.edits(part),
            work.cases,
            fingerprint=asked,
            measures=measures,
            batch_size=work.knobs.batch_size,
        )
    return found
