"""The unit of work of an evaluation: one editor at one setting on a slice of the cases.

Pictures and values are stored apart: `edits/` is keyed by what decides the pictures, `parts/` by those and by the
measures, so that another judge repeats no edit. An unfinished part keeps what it has in a journal.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

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
"""Every case once; some at each setting of a sweep; a few in a grid of settings; sessions, each edit on the last."""
CASES_PER_PART = 128

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An editor, a setting, and the cases that it edits."""

    model: str
    kind: Kind
    setting: Setting
    index: int
    cases: tuple[int, ...]
    """Numbers of the held-out cases."""

    @property
    def name(self) -> str:
        """Returns the name of its files, such as `model-edit-t7.5-i1.5-00000`."""
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


def sweep_slices(model: str, knobs: EvaluationConfig, numbers: Sequence[int]) -> Iterator[Part]:
    """Cuts an editor's sweep over the image guidance into parts."""
    for scale in knobs.image_guidance_scales:
        setting = Setting(guidance_scale=knobs.guidance_scale, image_guidance_scale=scale)
        yield from slices(model, "sweep", setting, numbers)


def sdedit_slices(knobs: EvaluationConfig, numbers: Sequence[int]) -> Iterator[Part]:
    """Cuts SDEdit's sweep over its strength into parts."""
    for strength in knobs.sdedit_strengths:
        setting = Setting(guidance_scale=knobs.sdedit_guidance_scale, image_guidance_scale=1.0, strength=strength)
        yield from slices("sdedit", "sweep", setting, numbers)


def noise_seed(seed: int, number: int) -> int:
    """Draws the seed of a case's noise, the same for every editor and setting."""
    return hash_to_seed(seed, "case", number)


_KEYS = [("model", pa.string()), ("kind", pa.string()), ("case", pa.int64()), ("seed", pa.int64())]
_SETTING = [(field.name, pa.float64()) for field in fields(Setting)]
EDIT_SCHEMA = pa.schema([*_KEYS, *_SETTING, ("edited_image", IMAGE_TYPE)])
_TEXTS = ("edit_type", "original_prompt", "edit_prompt", "edited_prompt", "session")


def write_edits(
    plan: Plan, part: Part, editor: EditFunction, edits_hash: str, progress: Callable[[int], object]
) -> store.Sidecar:
    """Edits the part's cases, resuming after a kill, and writes them; `progress` gets the size of every batch."""
    started, path, cases = time.monotonic(), plan.edits(part), plan.cases
    journal = EditJournal(path.with_name(f".{path.stem}-{edits_hash[:12]}.journal"), EDIT_SCHEMA)
    rows = {row["case"]: row for row in journal.read()}
    progress(len(rows))
    for numbers in _batches(part, cases, plan.knobs.batch_size):
        missing = [number for number in numbers if number not in rows]
        if not missing:
            continue
        seeds = [noise_seed(plan.knobs.seed, number) for number in missing]
        images = [_input_of(number, part, cases, rows) for number in missing]
        edited = editor(images, [cases[number] for number in missing], seeds, part.setting)
        new_rows = [
            {"model": part.model, "kind": part.kind, "case": case, "seed": case_seed, **asdict(part.setting)}
            | {"edited_image": {"bytes": encode_png(image), "path": None}}
            for case, case_seed, image in zip(missing, seeds, edited, strict=True)
        ]
        journal.add(new_rows)
        rows |= {row["case"]: row for row in new_rows}
        progress(len(new_rows))
    table = pa.Table.from_pylist([rows[number] for number in part.cases], schema=EDIT_SCHEMA)
    seconds, counts = time.monotonic() - started, {"edits": len(rows)}
    sidecar = store.write_shard(path, table, fingerprint=edits_hash, seconds=seconds, counts=counts)
    journal.remove()
    logger.info("%s: %d edits in %.1f s", part.name, sidecar.rows, sidecar.seconds)
    return sidecar


def _batches(part: Part, cases: Sequence[EditCase], size: int) -> Iterator[Sequence[int]]:
    """Yields cases that can be edited together: in sessions all first edits, then all second ones, and so on."""
    turns = {number: _turn(number, cases) if part.kind == "chain" else 0 for number in part.cases}
    for turn in sorted(set(turns.values())):
        numbers = [number for number in part.cases if turns[number] == turn]
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


def _turn(number: int, cases: Sequence[EditCase]) -> int:
    previous = cases[number].previous
    return 0 if previous is None else 1 + _turn(previous, cases)


def _input_of(number: int, part: Part, cases: Sequence[EditCase], rows: Mapping[int, Record]) -> Pixels:
    previous = cases[number].previous
    if part.kind != "chain" or previous is None:
        return cases[number].original_image
    return open_pixels(rows[previous]["edited_image"]["bytes"])


def measured_schema(measures: Sequence[Measure]) -> pa.Schema:
    """Returns the columns of a part's measures."""
    values = [(column.name, column.type) for measure in measures for column in measure.columns]
    return pa.schema([*_KEYS, *_SETTING, *((name, pa.string()) for name in _TEXTS), ("is_last", pa.bool_()), *values])


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an evaluation edits and measures."""

    folder: Path
    knobs: EvaluationConfig
    cases: Sequence[EditCase]
    editors: Mapping[str, EditorSource]
    parts: Sequence[Part]
    measures: Sequence[Measure]

    def edits(self, part: Part) -> Path:
        """Returns the path of a part's pictures."""
        return self.folder / "edits" / f"{part.name}.parquet"

    def values(self, part: Part) -> Path:
        """Returns the path of a part's values: a row for each of its pictures, in the same order."""
        return self.folder / "parts" / f"{part.name}.parquet"


def edit_and_measure(
    plan: Plan, progress: Callable[[float], object] = lambda share: None
) -> tuple[list[Record], float]:
    """Makes the missing parts and gathers `scores.parquet`, `cases.parquet` and, if there are grids, `grids.parquet`.

    Returns the rows of the scores, and the seconds that all parts took, whenever they were made. `progress` gets the
    share of the missing edits that are done.
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
    seconds = sum(sidecar.seconds for sidecar in (*edits.values(), *values.values()))
    return pq.read_table(scores).to_pylist(), round(seconds, 3)


def _edit_missing(plan: Plan, progress: Callable[[float], object]) -> dict[Part, store.Sidecar]:
    """Edits the parts that are missing, one editor after the other, and returns the sidecars of all."""
    from ip2p.models.loading import unload_all

    hashes = [fingerprint_case(case) for case in plan.cases]
    fingerprints = {
        part: fingerprint(
            part, [hashes[number] for number in part.cases], plan.editors[part.model].identity, plan.knobs.seed
        )
        for part in plan.parts
    }
    finished = ((part, store.finished(plan.edits(part), fingerprints[part])) for part in plan.parts)
    sidecars = {part: sidecar for part, sidecar in finished if sidecar is not None}
    missing = [part for part in plan.parts if part not in sidecars]
    if sidecars:
        logger.info("%d of %d parts were edited already", len(sidecars), len(plan.parts))
    total, done = sum(len(part.cases) for part in missing), list[int]()
    with tqdm(total=total, desc="edit", unit="edit", disable=None if missing else True) as bar:

        def count(num: int) -> None:
            done.append(num)  # a hidden bar does not count
            bar.update(num)
            progress(sum(done) / total)

        for name in dict.fromkeys(part.model for part in missing):
            editor = plan.editors[name].load()
            for part in missing:
                if part.model == name:
                    sidecars[part] = write_edits(plan, part, editor, fingerprints[part], count)
            del editor  # one model in memory at a time
            unload_all()
    return {part: sidecars[part] for part in plan.parts}


def _measure_missing(plan: Plan, edits: Mapping[Part, store.Sidecar]) -> dict[Part, store.Sidecar]:
    """Measures the parts whose pictures or measures have changed and returns the sidecars of all."""
    sidecars: dict[Part, store.Sidecar] = {}
    for part in tqdm(plan.parts, desc="measure", unit="part", disable=None):
        measures = [measure for measure in plan.measures if not measure.edits_only or part.kind in ("edit", "chain")]
        values_hash = fingerprint(edits[part].sha256, [measure.identity for measure in measures])
        sidecar = store.finished(plan.values(part), values_hash)
        if sidecar is None:
            started, rows = time.monotonic(), list[Record]()
            for batch in pq.ParquetFile(plan.edits(part)).iter_batches(batch_size=plan.knobs.batch_size):
                rows += _measured(batch.to_pylist(), plan.cases, measures)
            table = pa.Table.from_pylist(rows, schema=measured_schema(measures))
            seconds = time.monotonic() - started
            sidecar = store.write_shard(plan.values(part), table, fingerprint=values_hash, seconds=seconds)
        sidecars[part] = sidecar
    return sidecars


def _measured(rows: Sequence[Record], all_cases: Sequence[EditCase], measures: Sequence[Measure]) -> list[Record]:
    """Replaces the pictures in the rows of edits by the cases' texts and the measured values."""
    cases = [all_cases[row["case"]] for row in rows]
    before = [case.original_image for case in cases]
    after = [open_pixels(row["edited_image"]["bytes"]) for row in rows]
    measured: list[Record] = []
    for row, case in zip(rows, cases, strict=True):
        texts = {name: getattr(case, name) for name in (*_TEXTS, "is_last")}
        measured.append({name: row[name] for name, _ in (*_KEYS, *_SETTING)} | texts)
    for measure in measures:
        measured = [{**row, **values} for row, values in zip(measured, measure(cases, before, after), strict=True)]
    return measured


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
