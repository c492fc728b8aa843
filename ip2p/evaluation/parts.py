"""The unit of work of an evaluation: one editor at one setting on a slice of the cases.

Pictures and figures lie apart: `edits/` is keyed by what decides the pictures, `parts/` by those and by the measures,
so that another judge edits nothing anew. An unfinished part keeps what it has in a journal.
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
from ip2p.evaluation.editors import Editor, EditorSource, Setting
from ip2p.evaluation.measures import Measure
from ip2p.evaluation.metrics import Record
from ip2p.images import IMAGE_TYPE, encode_png, open_pixels
from ip2p.records import hash_to_seed
from ip2p.store.journal import EditJournal

Kind = Literal["edit", "sweep", "grid", "chain"]
"""All cases; few of them at every setting; a few for a grid of settings; sessions, each edit on the one before."""
CASES_PER_PART = 128


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
    """The parts that the cases of one editor at one setting make."""
    for index, start in enumerate(range(0, len(numbers), CASES_PER_PART)):
        some = tuple(numbers[start : start + CASES_PER_PART])
        yield Part(model=model, kind=kind, setting=setting, index=index, cases=some)


def session_slices(model: str, setting: Setting, cases: Sequence[EditCase]) -> Iterator[Part]:
    """The same of whole sessions, in which each edit goes on from the one before."""
    sessions: dict[str, list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        sessions[case.session or f"case {number}"].append(number)
    numbers: list[int] = []
    index = 0
    for count, session in enumerate(sessions.values(), start=1):
        numbers += session
        if len(numbers) >= CASES_PER_PART or count == len(sessions):
            yield Part(model=model, kind="chain", setting=setting, index=index, cases=tuple(numbers))
            numbers, index = [], index + 1


def noise_seed(seed: int, number: int) -> int:
    """Seed of a case's noise: the same for every editor and every setting."""
    return hash_to_seed(seed, "case", number)


_KEYS = [("model", pa.string()), ("kind", pa.string()), ("case", pa.int64()), ("seed", pa.int64())]
_SETTING = [("guidance_scale", pa.float64()), ("image_guidance_scale", pa.float64()), ("strength", pa.float64())]
EDIT_SCHEMA = pa.schema([*_KEYS, *_SETTING, ("edited_image", IMAGE_TYPE)])
_TEXTS = ("edit_type", "original_prompt", "edit_prompt", "edited_prompt", "session")


def fingerprint_edits(part: Part, case_hashes: Sequence[str], editor: str, seed: int) -> str:
    """Hash of all that decides a part's pictures: the cases' content, the editor's weights, the setting."""
    return fingerprint(part, [case_hashes[number] for number in part.cases], editor, seed)


def write_edits(
    path: Path,
    part: Part,
    cases: Sequence[EditCase],
    *,
    fingerprint: str,
    editor: Editor,
    seed: int,
    batch_size: int,
    progress: Callable[[int], object],
) -> store.Sidecar:
    """Edits the part's cases, goes on where it was stopped, and writes them; `progress` is told of every batch."""
    started = time.monotonic()
    journal = EditJournal(path.with_name(f".{path.stem}-{fingerprint[:12]}.journal"), EDIT_SCHEMA)
    rows = {row["case"]: row for row in journal.read()}
    progress(len(rows))
    for numbers in _batches(part, cases, batch_size):
        todo = [number for number in numbers if number not in rows]
        if not todo:
            continue
        seeds = [noise_seed(seed, number) for number in todo]
        images = [_input_of(number, part, cases, rows) for number in todo]
        edited = editor(images, [cases[number] for number in todo], seeds, part.setting)
        made = [_edit_row(part, *each) for each in zip(todo, seeds, edited, strict=True)]
        journal.add(made)
        rows |= {row["case"]: row for row in made}
        progress(len(made))
    table = pa.Table.from_pylist([rows[number] for number in part.cases], schema=EDIT_SCHEMA)
    seconds, counts = time.monotonic() - started, {"edits": len(rows)}
    sidecar = store.write_shard(path, table, fingerprint=fingerprint, seconds=seconds, counts=counts)
    journal.remove()
    return sidecar


def _batches(part: Part, cases: Sequence[EditCase], size: int) -> Iterator[Sequence[int]]:
    """Cases that can be edited together; where edits go on from one another, all first ones, then all second ones."""
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
    found = {"model": part.model, "kind": part.kind, "case": number, "seed": seed}
    scales = {name: getattr(part.setting, name) for name, _ in _SETTING}
    return found | scales | {"edited_image": {"bytes": encode_png(image), "path": None}}


def measured_schema(measures: Sequence[Measure]) -> pa.Schema:
    """The columns of a part's figures."""
    columns = [field for measure in measures for field in measure.columns.items()]
    texts = [(name, pa.string()) for name in _TEXTS]
    return pa.schema([*_KEYS, *_SETTING, *texts, ("is_last", pa.bool_()), *columns])


def write_measures(
    path: Path,
    edits: Path,
    cases: Sequence[EditCase],
    *,
    fingerprint: str,
    measures: Sequence[Measure],
    batch_size: int,
) -> store.Sidecar:
    """Measures a finished part's pictures and writes the figures."""
    started, rows = time.monotonic(), []
    for batch in pq.ParquetFile(edits).iter_batches(batch_size=batch_size):
        made = batch.to_pylist()
        some = [cases[row["case"]] for row in made]
        after = [open_pixels(row.pop("edited_image")["bytes"]) for row in made]
        before = [case.original_image for case in some]
        for row, case in zip(made, some, strict=True):
            row |= {name: getattr(case, name) for name in (*_TEXTS, "is_last")}
        for measure in measures:
            for row, figures in zip(made, measure(some, before, after), strict=True):
                row |= figures
        rows += made
    table = pa.Table.from_pylist(rows, schema=measured_schema(measures))
    return store.write_shard(path, table, fingerprint=fingerprint, seconds=time.monotonic() - started)


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
    from ip2p.models.loading import unload_all

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
