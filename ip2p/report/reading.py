"""What a run folder holds for the report: tables, edits and figures, each left out if it cannot be read.

A missing or unreadable part is None or empty, never an error: a report of half a run is still a report. Tables stay
columns, and only a limited number of rows become more than that, so that a large run is read as quickly as a small one.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import PipelineConfig
from ip2p.evaluation.cases import EditJudgement
from ip2p.evaluation.precision import SCHEMA as ORACLE_SCHEMA
from ip2p.evaluation.precision import precision_of
from ip2p.prompts.inspection import COLUMNS as GENERATION_COLUMNS
from ip2p.report.facts import (
    UNREADABLE,
    Evaluation,
    HeldOutEdit,
    Json,
    Pair,
    Place,
    held_out_edit,
    is_number,
    judgement_of,
    mapping,
    pair_of,
    read_evaluation,
)
from ip2p.scoring import SCORE_COLUMNS
from ip2p.scoring.reliability import Reliability, read_reliability
from ip2p.store.journal import RecordFile

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_GENERATIONS = 20_000
"""Answers of the language model whose words are counted."""
MOST_EDITS = 10_000
"""Held-out edits of one file."""
MOST_SHARDS = 24
"""Shards that pairs are taken from."""
MOST_PAIRS = 20_000
"""Pairs that are chosen from."""
MOST_BYTES = 1_500_000_000
"""Bytes of pictures that are passed over to reach the chosen ones: parquet reads a column from its start."""

_CANDIDATE = ("edit_type", "accepted", "reason")
_COSTS = ("guidance_scale", "shared_steps", "first_look")
_PAIR = ("triplet_id", "candidate", *_CANDIDATE, "original_prompt", "edit_prompt", "edited_prompt")
_EDIT = ("case", "edit_type", "edit_prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Everything that a run folder holds for the report; the tables without their pictures."""

    name: str
    config: PipelineConfig
    summary: Json
    triplets: pa.Table
    """Caption and reason of every answer of the language model."""
    generations: list[dict[str, str]]
    """Whole rows of the triplets, at most MOST_GENERATIONS."""
    candidates: pa.Table
    judges: dict[str, Reliability]
    """How reliable the filter's judges are, by column, as far as it was measured."""
    precision: Json
    """What `evaluation.precision` says of the pairs, counted from its verdicts if the summary lacks it."""
    pairs: list[Pair]
    loss: list[tuple[int, float]]
    """(step, loss)."""
    evaluation: Evaluation
    edits: list[HeldOutEdit]
    """The trained editor's held-out edits."""
    cases: Path | None
    grids: Path | None
    seconds: dict[str, float]
    versions: dict[str, list[str]]
    """What the run was made with, each in the order of the starts."""

    @property
    def edit_types(self) -> list[str]:
        """Returns the edit types in the evaluation's order."""
        return list(self.evaluation.editor.by_type)

    def summary_of(self, stage: str) -> Json:
        """Returns a stage's part of the summary."""
        return mapping(self.summary.get(stage))


def read_run(config: PipelineConfig) -> RunFacts:
    """Reads all that the run folder of a config holds."""
    run = store.RunFolder(config.out)
    summary, figures = _read_object(run.root / "summary.json"), _read_object(run.evaluation / "figures.json")
    evaluation = read_evaluation(figures)
    candidates = read_table(run.shards("candidates"), _CANDIDATE, (*_COSTS, *SCORE_COLUMNS))
    oracle = read_table(run.shards("evaluation/oracle"), ORACLE_SCHEMA.names)
    precision: Json = mapping(summary.get("dataset"))
    if "oracle_precision" not in precision and oracle.num_rows:
        precision = precision_of(oracle.to_pylist(), candidates.num_rows, list(evaluation.editor.by_type))
    return RunFacts(
        name=run.root.resolve().name,
        config=config,
        summary=summary,
        triplets=read_table(run.shards("triplets"), ("caption", "reason")),
        generations=_read_generations(run.shards("triplets")),
        candidates=candidates,
        judges=_or(dict[str, Reliability](), lambda: read_reliability(run.root)),
        precision=precision,
        pairs=_read_pairs(run, oracle),
        loss=_or([], lambda: list(_read_loss(run.training / "loss.jsonl"))),
        evaluation=evaluation,
        edits=[
            edit for name in evaluation.parts if name.startswith("model-") for edit in read_part(run.evaluation, name)
        ],
        cases=_existing(run.evaluation / "cases.parquet"),
        grids=_existing(run.evaluation / "grids.parquet"),
        seconds=_read_seconds(run, summary, figures),
        versions=_read_versions(run),
    )


def _read_object(path: Path) -> dict[str, object]:
    return _or(dict[str, object](), lambda: mapping(store.read_json(path)))


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _or(default: T, read: Callable[[], T]) -> T:
    try:
        return read()
    except FileNotFoundError:
        return default
    except UNREADABLE as error:
        logger.warning("left out of the report: %s", error)
        return default


def read_table(files: Iterable[Path], columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    """Reads columns of all files as one table, without files that cannot be read; `optional` ones if they exist."""
    read = functools.partial(_read_columns, columns=columns, optional=optional)
    opened = (_or(None, functools.partial(read, file)) for file in files)
    tables = [_emptied(table, optional) for table in opened if table is not None]
    return _or(pa.table({}), lambda: pa.concat_tables(tables, promote_options="permissive")) if tables else pa.table({})


def _emptied(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Returns the table with those columns that hold nothing but null as such: they take no memory."""
    for place, name in enumerate(table.column_names):
        if name in names and table[name].null_count == len(table):
            table = table.set_column(place, name, pa.nulls(len(table)))
    return table


def _read_columns(
    file: Path, columns: Sequence[str], optional: Sequence[str] | None = (), num_rows: int | None = None
) -> pa.Table | None:
    """Reads the first rows of some columns; `optional` ones if they exist, or all others if it is None."""
    with pq.ParquetFile(file) as opened:
        names = opened.schema_arrow.names
        if missing := [name for name in columns if name not in names]:
            raise KeyError(f"{file.name} has no column {', '.join(missing)}")
        present = names if optional is None else [*columns, *(name for name in optional if name in names)]
        if num_rows is None or num_rows >= opened.metadata.num_rows:
            return opened.read(columns=present)
        return pa.Table.from_batches([next(opened.iter_batches(batch_size=num_rows, columns=present))])


def _read_rows(
    file: Path, columns: Sequence[str], num_rows: int, optional: Sequence[str] | None = ()
) -> list[dict[str, Any]]:
    """Reads the first rows of a file; none if it cannot be read."""
    table = _or(None, functools.partial(_read_columns, file, columns, optional, num_rows))
    return [] if table is None else table.to_pylist()


def _read_generations(files: Sequence[Path]) -> list[dict[str, str]]:
    """Reads the first rows of every file, at most MOST_GENERATIONS in all."""
    rows: list[dict[str, str]] = []
    for number, file in enumerate(files):
        rows += _read_rows(file, GENERATION_COLUMNS, -(-(MOST_GENERATIONS - len(rows)) // (len(files) - number)))
    return [{name: str(value or "") for name, value in row.items()} for row in rows[:MOST_GENERATIONS]]


def _read_pairs(run: store.RunFolder, oracle: pa.Table) -> list[Pair]:
    """Reads pairs from all over the run, of no more shards than can be looked into."""
    shards = spread(run.shards("pairs"), MOST_SHARDS)
    rows: list[tuple[Place, dict[str, object]]] = []
    for shard in shards:
        if readable := _or(0, functools.partial(num_readable, shard, len(shards))):
            part = _read_rows(shard, _PAIR, readable, tuple(SCORE_COLUMNS))
            rows += [(Place(shard, index), row) for index, row in enumerate(part)]
    judgements: dict[tuple[str, int], EditJudgement | None] = {}
    if oracle.num_rows:
        triplet_ids = pa.array({str(row["triplet_id"]) for _, row in rows}, pa.string())
        for row in oracle.filter(pc.is_in(oracle["triplet_id"].cast(pa.string()), value_set=triplet_ids)).to_pylist():
            judgements[row["triplet_id"], row["candidate"]] = judgement_of(row)
    return [pair_of(row, place, judgements) for place, row in rows]


def read_part(evaluation: Path, name: str) -> list[HeldOutEdit]:
    """Reads the edits of one part of an evaluation or a benchmark."""
    rows = _read_rows(evaluation / "parts" / f"{name}.parquet", _EDIT, MOST_EDITS, None)
    pictures = evaluation / "edits" / f"{name}.parquet"
    return [held_out_edit(row, Place(pictures, index)) for index, row in enumerate(rows)]


def _read_loss(path: Path) -> Iterator[tuple[int, float]]:
    for record in RecordFile(path).read():
        row = mapping(record)
        step, loss = row.get("step"), row.get("loss")
        if isinstance(step, int) and isinstance(loss, int | float):
            yield step, float(loss)


def _read_seconds(run: store.RunFolder, summary: Json, figures: Json) -> dict[str, float]:
    """Reads seconds per stage: from the summary, else from the evaluation's figures or the shards' sidecars."""
    seconds: dict[str, float] = {}
    folders = {"prompts": "triplets", "rendering": "candidates", "dataset": "", "training": "", "evaluation": ""}
    for stage, folder in folders.items():
        value = mapping(summary.get(stage)).get("seconds")
        if value is None and stage == "evaluation":
            value = figures.get("seconds")
        if value is None and folder:
            sidecars = [store.read_sidecar(path) for path in run.shards(folder)]
            value = sum(sidecar.seconds for sidecar in sidecars if sidecar) or None
        if is_number(value):
            seconds[stage] = float(value)
    return seconds


def _read_versions(run: store.RunFolder) -> dict[str, list[str]]:
    """Reads what the run was made with; this process's own versions if the run does not say."""
    environments = store.read_environments(run.root) or [store.describe_environment()]
    commit = environments[-1].get("commit")
    versions: dict[str, list[str]] = {"commit": [str(commit)]} if commit else {}
    for environment in environments:
        for name, version in store.versions_of(environment).items():
            if version not in versions.setdefault(name, []):
                versions[name].append(version)
    return versions


def spread(files: Sequence[T], most: int) -> list[T]:
    """Returns at most `most` items, evenly from first to last."""
    if len(files) <= most:
        return list(files)
    return [files[number * len(files) // most] for number in range(most)]


def num_readable(shard: Path, num_shards: int) -> int:
    """Returns how many of a shard's first rows are chosen from if `num_shards` share what is allowed."""
    metadata = pq.read_metadata(shard)
    if not metadata.num_rows:
        return 0
    num_bytes = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    affordable = MOST_BYTES / num_shards / max(1.0, num_bytes / metadata.num_rows)
    return int(max(1, min(metadata.num_rows, MOST_PAIRS // num_shards, affordable)))
