"""The unit of work of an evaluation: one editor at one setting on a slice of the cases.

Pictures and values are stored apart: `edits/` is keyed by what decides the pictures, `parts/` by those and by the
measures, so that another judge edits nothing anew. An unfinished part keeps what it has in a journal.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ip2p import store
from ip2p.config import EvaluationConfig, fingerprint
from ip2p.evaluation.cases import EditCase, Pixels, cases_table, fingerprint_case
from ip2p.evaluation.editors import EditFunction, EditorSource, Setting
from ip2p.evaluation.measures import Measure
from ip2p.evaluation.metrics import Record
from ip2p.images import IMAGE_TYPE, encode_png, open_pixels
from ip2p.records import hash_to_seed
from ip2p.store.journal import EditJournal

Kind = Literal["edit", "sweep", "grid", "chain"]
"""All cases; some of them at every setting; a few for a grid of settings; sessions, each edit on the one before."""
CASES_PER_PART = 128

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which editor, at which setting, on which cases."""

    model: str
    kind: Kind
    setting: Setting
    index: int
    cases: tuple[int, ...]
    """Numbers of the held-out cases."""

    @property
    def name(self) -> str:
        """`model-edit-t7.5-i1.5-00000`."""
        return f"{self.model.replace(' ', '-')}-{self.kind}-{self.setting.name}-{self.index:05d}"


def slices(model: str, kind: Kind, setting: Setting, numbers: Sequence[int]) -> Iterator[Part]:
    """Cuts the cases of one editor at one setting into parts."""
    for index, start in enumerate(range(0, len(numbers), CASES_PER_PART)):
        cases = tuple(numbers[start : start + CASES_PER_PART])
        yield Part(model=model, kind=kind, setting=setting, index=index, cases=cases)


def session_slices(model: str, setting: Setting, cases: Sequence[EditCase]) -> Iterator[Part]:
    """Cuts whole sessions, in which each edit continues the one before, into parts."""
    sessions: dict[str, list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        sessions[case.session or f"case {number}"].append(number)
    numbers, index = list[int](), 0
    for count, session in enumerate(sessions.values(), start=1):
        numbers += session
        if len(numbers) >= CASES_PER_PART or count == len(sessions):
            yield Part(model=model, kind="chain", setting=setting, index=index, cases=tuple(numbers))
            numbers, index = [], index + 1


def noise_seed(seed: int, number: int) -> int:
    """Seed of a case's noise, the same for every editor and setting."""
    return hash_to_seed(seed, "case", number)


_KEYS = [("model", pa.string()), ("kind", pa.string()), ("case", pa.int64()), ("seed", pa.int64())]
_SETTING = [("guidance_scale", pa.float64()), ("image_guidance_scale", pa.float64()), ("strength", pa.float64())]
EDIT_SCHEMA = pa.schema([*_KEYS, *_SETTING, ("edited_image", IMAGE_TYPE)])
_TEXTS = ("edit_type", "original_prompt", "edit_prompt", "edited_prompt", "session")


def fingerprint_edits(part: Part, case_hashes: Sequence[str], editor: str, seed: int) -> str:
    """Hash of everything that decides a part's pictures: the cases' content, the editor's weights, the setting."""
    return fingerprint(part, [case_hashes[number] for number in part.cases], editor, seed)


def write_edits(
    path: Path,
    part: Part,
    cases: Sequence[EditCase],
    *,
    fingerprint: str,
    editor: EditFunction,
    seed: int,
    batch_size: int,
    progress: Callable[[int], object],
) -> store.Sidecar:
    """Edits the part's cases, resuming after a kill, and writes them; `progress` gets the size of every batch."""
    started = time.monotonic()
    journal = EditJournal(path.with_name(f".{path.stem}-{fingerprint[:12]}.journal"), EDIT_SCHEMA)
    rows = {row["case"]: row for row in journal.read()}
    progress(len(rows))
    for numbers in _batches(part, cases, batch_size):
        missing = [number for number in numbers if number not in rows]
        if not missing:
            continue
        seeds = [noise_seed(seed, number) for number in missing]
        images = [_input_of(number, part, cases, rows) for number in missing]
        edited = editor(images, [cases[number] for number in missing], seeds, part.setting)
        new_rows = [_edit_row(part, *edit) for edit in zip(missing, seeds, edited, strict=True)]
        journal.add(new_rows)
        rows |= {row["case"]: row for row in new_rows}
        progress(len(new_rows))
    table = pa.Table.from_pylist([rows[number] for number in part.cases], schema=EDIT_SCHEMA)
    seconds, counts = time.monotonic() - started, {"edits": len(rows)}
    sidecar = store.write_shard(path, table, fingerprint=fingerprint, seconds=seconds, counts=counts)
    journal.remove()
    return sidecar


def _batches(part: Part, cases: Sequence[EditCase], size: int) -> Iterator[Sequence[int]]:
    """Cases that can be edited together; in sessions all first edits, then all second ones, and so on."""
    waves: dict[int, list[int]] = defaultdict(list)
    for number in part.cases:
        waves[_turn(number, cases) if part.kind == "chain" else 0].append(number)
    for _, numbers in sorted(waves.items()):
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


def _turn(number: int, cases: Sequence[EditCase]) -> int:
    previous = cases[number].previous
    return 0 if previous is None else 1 + _turn(previous, cases)


def _input_of(number: int, part: Part, cases: Sequence[EditCase], rows: Mapping[int, dict[str, Any]]) -> Pixels:
    previous = cases[number].previous
    if part.kind != "chain" or previous is None:
        return cases[number].original_image
    return open_pixels(rows[previous]["edited_image"]["bytes"])


def _edit_row(part: Part, number: int, seed: int, image: Pixels) -> dict[str, Any]:
    keys = {"model": part.model, "kind": part.kind, "case": number, "seed": seed}
    keys |= {name: getattr(part.setting, name) for name, _ in _SETTING}
    return keys | {"edited_image": {"bytes": encode_png(image), "path": None}}


def measured_schema(measures: Sequence[Measure]) -> pa.Schema:
    """The columns of a part's measures."""
    values = [(column.name, column.type) for measure in measures for column in measure.columns]
    return pa.schema([*_KEYS, *_SETTING, *((name, pa.string()) for name in _TEXTS), ("is_last", pa.bool_()), *values])


def write_measures(
    path: Path,
    edits: Path,
    cases: Sequence[EditCase],
    *,
    fingerprint: str,
    measures: Sequence[Measure],
    batch_size: int,
) -> store.Sidecar:
    """Measures a finished part's pictures and writes the values."""
    started, rows = time.monotonic(), []
    for batch in pq.ParquetFile(edits).iter_batches(batch_size=batch_size):
        batch_rows = batch.to_pylist()
        batch_cases = [cases[row["case"]] for row in batch_rows]
        after = [open_pixels(row.pop("edited_image")["bytes"]) for row in batch_rows]
        before = [case.original_image for case in batch_cases]
        for row, case in zip(batch_rows, batch_cases, strict=True):
            row |= {name: getattr(case, name) for name in (*_TEXTS, "is_last")}
        for measure in measures:
            for row, values in zip(batch_rows, measure(batch_cases, before, after), strict=True):
                row |= values
        rows += batch_rows
    table = pa.Table.from_pylist(rows, schema=measured_schema(measures))
    return store.write_shard(path, table, fingerprint=fingerprint, seconds=time.monotonic() - started)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that an evaluation edits and measures."""

    folder: Path
    knobs: EvaluationConfig
    cases: Sequence[EditCase]
    editors: Mapping[str, EditorSource]
    parts: Sequence[Part]
    measures: Sequence[Measure]

    def measures_of(self, part: Part) -> list[Measure]:
        """The measures that are taken of a part."""
        return [measure for measure in self.measures if not measure.edits_only or part.kind in ("edit", "chain")]

    def edits(self, part: Part) -> Path:
        """Path of a part's pictures."""
        return self.folder / "edits" / f"{part.name}.parquet"

    def values(self, part: Part) -> Path:
        """Path of a part's values: a row for each of its pictures, in the same order."""
        return self.folder / "parts" / f"{part.name}.parquet"


@dataclass(frozen=True, slots=True)
class Results:
    """The rows of all parts, and the seconds that those took, whenever they were made."""

    records: list[Record]
    seconds: float


def edit_and_measure(plan: Plan, progress: Callable[[float], object] = lambda share: None) -> Results:
    """Makes the missing parts and gathers `scores.parquet`, `cases.parquet` and, if there are grids, `grids.parquet`.

    `progress` gets the share of the missing edits that are done.
    """
    edits = _edit_missing(plan, progress)
    values = _measure_missing(plan, edits)
    parts_hash = fingerprint([(part.name, sidecar.sha256) for part, sidecar in values.items()])
    scores = plan.folder / "scores.parquet"
    if store.finished(scores, parts_hash) is None:
        store.write_shard(plan.folder / "cases.parquet", cases_table(plan.cases), fingerprint=parts_hash, seconds=0.0)
        _gather_grids(plan)
        table = pa.concat_tables([pq.read_table(plan.values(part)) for part in values], promote_options="default")
        store.write_shard(scores, table, fingerprint=parts_hash, seconds=0.0)
    seconds = sum(sidecar.seconds for sidecars in (edits, values) for sidecar in sidecars.values())
    return Results(pq.read_table(scores).to_pylist(), round(seconds, 3))


def _gather_grids(plan: Plan) -> None:
    """Writes a row per case and pair of guidances, with the pictures before and after."""
    columns = ["case", "guidance_scale", "image_guidance_scale", "edited_image"]
    tables = [pq.read_table(plan.edits(part), columns=columns) for part in plan.parts if part.kind == "grid"]
    if not tables:
        return
    grid = pa.concat_tables(tables)
    cases = [plan.cases[number] for number in grid["case"].to_pylist()]
    before = [{"bytes": encode_png(case.original_image), "path": None} for case in cases]
    grid = grid.add_column(3, "edit_prompt", pa.array([case.edit_prompt for case in cases], pa.string()))
    grid = grid.add_column(4, "original_image", pa.array(before, IMAGE_TYPE))
    store.write_shard(plan.folder / "grids.parquet", grid, fingerprint="", seconds=0.0)


@dataclass(slots=True)
class _EditCount:
    """Counts the missing edits that are done, because a hidden bar does not count."""

    total: int
    bar: tqdm[Any]
    progress: Callable[[float], object]
    done: int = 0

    def add(self, num: int) -> None:
        self.done += num
        self.bar.update(num)
        self.progress(self.done / self.total)


def _edit_missing(plan: Plan, progress: Callable[[float], object]) -> dict[Part, store.Sidecar]:
    """Edits the parts that are missing, one editor after the other, and returns the sidecars of all."""
    from ip2p.models.loading import unload_all

    hashes = [fingerprint_case(case) for case in plan.cases]
    fingerprints = {
        part: fingerprint_edits(part, hashes, plan.editors[part.model].identity, plan.knobs.seed) for part in plan.parts
    }
    finished = ((part, store.finished(plan.edits(part), fingerprints[part])) for part in plan.parts)
    sidecars = {part: sidecar for part, sidecar in finished if sidecar is not None}
    missing = [part for part in plan.parts if part not in sidecars]
    if sidecars:
        logger.info("%d of %d parts were edited already", len(sidecars), len(plan.parts))
    total = sum(len(part.cases) for part in missing)
    with tqdm(total=total, desc="edit", unit="edit", disable=None if missing else True) as bar:
        count = _EditCount(total, bar, progress)
        for name in dict.fromkeys(part.model for part in missing):
            to_edit = {part: fingerprints[part] for part in missing if part.model == name}
            sidecars |= _edit_parts(plan, plan.editors[name].load(), to_edit, count)
            unload_all()  # one model in memory at a time
    return {part: sidecars[part] for part in plan.parts}


def _edit_parts(
    plan: Plan, editor: EditFunction, fingerprints: Mapping[Part, str], count: _EditCount
) -> dict[Part, store.Sidecar]:
    """Edits the parts of one editor."""
    sidecars = {}
    for part, part_hash in fingerprints.items():
        sidecar = sidecars[part] = write_edits(
            plan.edits(part),
            part,
            plan.cases,
            fingerprint=part_hash,
            editor=editor,
            seed=plan.knobs.seed,
            batch_size=plan.knobs.batch_size,
            progress=count.add,
        )
        logger.info("%s: %d edits in %.1f s", part.name, sidecar.rows, sidecar.seconds)
    return sidecars


def _measure_missing(plan: Plan, edits: Mapping[Part, store.Sidecar]) -> dict[Part, store.Sidecar]:
    """Measures the parts whose pictures or measures have changed and returns the sidecars of all."""
    sidecars: dict[Part, store.Sidecar] = {}
    for part in tqdm(plan.parts, desc="measure", unit="part", disable=None):
        measures = plan.measures_of(part)
        values_hash = fingerprint(edits[part].sha256, [measure.identity for measure in measures])
        sidecars[part] = store.finished(plan.values(part), values_hash) or write_measures(
            plan.values(part),
            plan.edits(part),
            plan.cases,
            fingerprint=values_hash,
            measures=measures,
            batch_size=plan.knobs.batch_size,
        )
    return sidecars
