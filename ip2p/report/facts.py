"""What a run folder has to tell: every table and figure the report shows, each left out where it is not there.

A missing or unreadable part is None or empty, never an error: a report of half a run is still a report. Tables stay
columns, and only so many rows become more than that, so that a large run is read as quickly as a small one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import platform
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import PipelineConfig, to_dict
from ip2p.prompts.inspection import COLUMNS as GENERATION_COLUMNS
from ip2p.scoring import SCORE_COLUMNS

logger = logging.getLogger(__name__)

T = TypeVar("T")
Row = dict[str, Any]

UNREADABLE = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)
PACKAGES = (
    "ip2p",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "open-clip-torch",
    "datasets",
    "pyarrow",
    "prefect",
)
CLIP = ("clip_original", "clip_edited", "clip_direction", "clip_image")
TEXTS = ("original_prompt", "edit_prompt", "edited_prompt")
MOST_GENERATIONS = 20_000
"""Answers of the language model whose words are counted."""
MOST_EDITS = 10_000
"""Held-out edits of one file."""
NOT_SHOWN = ("kind", "seed", "guidance_scale", "image_guidance_scale", "strength", "session", "is_last")
"""Columns of the edits that no card says."""

_CANDIDATE = ("edit_type", "accepted", "reason", *CLIP)
_COSTS = ("guidance_scale", "shared_steps", "first_look")
_EXTRA_SCORES = tuple(column for column in SCORE_COLUMNS if column not in CLIP)
_EDIT = ("case", "edit_type", "edit_prompt")
_JUDGED = ("triplet_id", "candidate", "edit_type", "accepted", "success", "done", "kept", "legible")


def _empty() -> pa.Table:
    return pa.table({})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Everything that was found; the tables without their pictures."""

    name: str
    config: Row
    summary: Row = field(default_factory=dict)
    triplets: pa.Table = field(default_factory=_empty)
    """Caption and reason of every answer of the language model."""
    generations: list[Row] = field(default_factory=list)
    """Whole rows of the triplets, of at most MOST_GENERATIONS."""
    candidates: pa.Table = field(default_factory=_empty)
    pairs: list[Row] = field(default_factory=list)
    """Rows of the pairs table, as many as `choosing` allows; `file` and `index` say where the pictures are."""
    oracle: pa.Table = field(default_factory=_empty)
    """The domain's verdicts of pairs."""
    loss: list[Row] = field(default_factory=list)
    figures: Row = field(default_factory=dict)
    """The evaluation's figures."""
    edits: list[Row] = field(default_factory=list)
    """The trained editor's held-out edits; `file` and `index` say where the pictures are."""
    cases: Path | None = None
    grids: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def read_run(config: PipelineConfig) -> RunFacts:
    """Reads all that the run folder of a config holds."""
    run = store.RunFolder(config.out)
    summary = _or(dict[str, Any](), lambda: _mapping(store.read_json(run.root / "summary.json")))
    figures = _or(dict[str, Any](), lambda: _mapping(store.read_json(run.evaluation / "figures.json")))
    return RunFacts(
        name=run.root.resolve().name,
        config=to_dict(config),
        summary=summary,
        triplets=read_table(run.shards("triplets"), ("caption", "reason")),
        generations=_read_some(run.shards("triplets"), GENERATION_COLUMNS, MOST_GENERATIONS),
        candidates=read_table(run.shards("candidates"), _CANDIDATE, (*_COSTS, *_EXTRA_SCORES)),
        pairs=_read_pairs(run),
        oracle=read_table(run.shards("evaluation/oracle"), _JUDGED),
        loss=_or([], lambda: _read_lines(run.training / "loss.jsonl")),
        figures=figures,
        edits=_read_edits(run, figures),
        cases=_existing(run.evaluation / "cases.parquet"),
        grids=_existing(run.evaluation / "grids.parquet"),
        seconds=_read_seconds(run, summary, figures),
        versions=_read_versions(run),
    )


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


def _mapping(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def read_table(files: Iterable[Path], columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    """Columns of all files as one table, without files that cannot be read; `optional` ones where they are."""
    read = functools.partial(_read_columns, columns=columns, optional=optional)
    tables = [table for file in files if (table := _or(None, functools.partial(read, file))) is not None]
    if not tables:
        return _empty()
    return _or(_empty(), lambda: pa.concat_tables(tables, promote_options="permissive"))


def _read_columns(
    file: Path, columns: Sequence[str], optional: Sequence[str] = (), num_rows: int | None = None
) -> pa.Table | None:
    with pq.ParquetFile(file) as opened:
        there = set(opened.schema_arrow.names)
        if missing := [name for name in columns if name not in there]:
            raise KeyError(f"{file.name} has no column {', '.join(missing)}")
        wanted = [*columns, *(name for name in optional if name in there)]
        if num_rows is None or num_rows >= opened.metadata.num_rows:
            return opened.read(columns=wanted)
        batches = opened.iter_batches(batch_size=num_rows, columns=wanted)
        return pa.Table.from_batches([next(batches)])


def _read_some(
    files: Sequence[Path], columns: Sequence[str], most: int, optional: Sequence[str] = (), *, where: bool = False
) -> list[Row]:
    """The first rows of every file, at most so many in all."""
    rows: list[Row] = []
    for number, file in enumerate(files):
        num = -(-(most - len(rows)) // (len(files) - number))
        read = functools.partial(_read_columns, file, columns, optional, num)
        table: pa.Table | None = _or(None, read)
        found: list[Row] = [] if table is None else table.to_pylist()
        rows += [row | {"file": file, "index": index} for index, row in enumerate(found)] if where else found
    return rows[:most]


def _read_pairs(run: store.RunFolder) -> list[Row]:
    """Rows from all over the run, of no more shards than can be looked into."""
    shards = spread(run.shards("pairs"), MOST_SHARDS)
    needed = ("triplet_id", "candidate", *_CANDIDATE, *TEXTS)
    rows: list[Row] = []
    for shard in shards:
        readable = _or(0, functools.partial(num_readable, shard, len(shards)))
        rows += _read_some([shard], needed, readable, _EXTRA_SCORES, where=True) if readable else []
    return rows


def _read_edits(run: store.RunFolder, figures: Row) -> list[Row]:
    names = [str(name) for name in figures.get("parts") or ()]
    files = [run.evaluation / "parts" / f"{name}.parquet" for name in names if name.startswith("model-")]
    found = [row for file in files for row in _read_some([file], _EDIT, MOST_EDITS, _other_columns(file), where=True)]
    return [row | {"file": run.evaluation / "edits" / row["file"].name} for row in found]


def _other_columns(file: Path) -> list[str]:
    names: list[str] = _or([], lambda: list(pq.read_schema(file).names))
    return [name for name in names if name not in (*_EDIT, *NOT_SHOWN)]


def _read_lines(path: Path) -> list[Row]:
    rows = []
    for line in path.read_text().splitlines():
        row = _or(Row(), functools.partial(_parse, line))
        if isinstance(row.get("step"), int) and isinstance(row.get("loss"), int | float):
            rows.append(row)
    return rows


def _parse(line: str) -> Row:
    return _mapping(json.loads(line))


def _read_seconds(run: store.RunFolder, summary: Row, figures: Row) -> dict[str, float]:
    """Seconds per stage: what the summary says, else the sum over the shards' sidecars."""
    seconds: dict[str, float] = {}
    folders = {"prompts": "triplets", "rendering": "candidates", "dataset": "", "training": "", "evaluation": ""}
    for stage, folder in folders.items():
        told = _mapping(summary.get(stage)).get("seconds")
        if told is None and stage == "evaluation":
            told = figures.get("seconds")
        if told is None and folder:
            sidecars = [store.read_sidecar(path) for path in run.shards(folder)]
            told = sum(sidecar.seconds for sidecar in sidecars if sidecar) or None
        if isinstance(told, int | float):
            seconds[stage] = float(told)
    return seconds


def _read_versions(run: store.RunFolder) -> dict[str, str]:
    """What the run says it was made with; this process's own versions where it says nothing."""
    told = _or(dict[str, Any](), lambda: _mapping(_mapping(store.read_json(run.root / "config.json"))["environment"]))
    libraries = {**{name: told.get(name) for name in ("commit", "ip2p", "python")}, **_mapping(told.get("libraries"))}
    return {name: str(value) for name, value in libraries.items() if value} or read_versions()


def read_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results, without importing them."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


MOST_SHARDS = 24
"""Shards that pairs are taken from."""
MOST_PAIRS = 20_000
"""Pairs that are chosen from."""
MOST_BYTES = 1_500_000_000
"""Bytes of pictures that are passed over to reach the chosen ones: parquet reads a column from its start."""


def spread(files: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly from first to last."""
    if len(files) <= most:
        return list(files)
    return [files[number * len(files) // most] for number in range(most)]


def num_readable(shard: Path, num_shards: int) -> int:
    """How many of a shard's first rows are chosen from, where so many shards share what is allowed."""
    found = pq.read_metadata(shard)
    if not found.num_rows:
        return 0
    groups = [found.row_group(number) for number in range(found.num_row_groups)]
    per_row = sum(group.total_byte_size for group in groups) / found.num_rows
    affordable = MOST_BYTES / num_shards / max(1.0, per_row)
    return int(max(1, min(found.num_rows, MOST_PAIRS // num_shards, affordable)))


def take_turns(rows: Sequence[Row], group: Callable[[Row], Any], num: int) -> list[Row]:
    """At most `num` rows, in turns from every group; rows of a group and groups of a turn in an order by hash."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=_shuffle_key):
        groups[group(row)].append(row)
    turns = [(turn, _hashed(f"{turn}/{name}"), row) for name, some in groups.items() for turn, row in enumerate(some)]
    return [row for _, _, row in sorted(turns, key=lambda item: item[:2])[:num]]


def _shuffle_key(row: Row) -> str:
    return _hashed(f"{row.get('triplet_id', '')}/{row.get('candidate', row.get('case', ''))}")


def _hashed(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()


def rank_edits(rows: Sequence[Row]) -> list[Row]:
    """From the best to the worst: by the oracle's verdict first, then by CLIP; without those that nothing tells apart.

    CLIP's word is the mean rank by direction and by image similarity, for the two differ in unit and spread: who leaves
    the input as it was ranks low in the first, who draws another picture in the second.
    """
    marks = [_mark(row) for row in rows]
    ranks = [_ranks([row.get(name) for row in rows]) for name in ("clip_direction", "clip_image")]
    told = [some for some in ranks if some is not None]
    if not told and len(set(marks)) < 2:
        return []
    clip = np.mean(told, axis=0) if told else np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda number: (-marks[number], -clip[number], rows[number]["case"]))
    return [rows[number] for number in order]


def first_of_each(rows: Sequence[Row], num: int, most: int) -> list[Row]:
    """The first rows, no more than `most` of an edit type: the easiest type would fill every place."""
    seen: Counter[Any] = Counter()
    chosen: list[Row] = []
    for row in rows:
        seen[row["edit_type"]] += 1
        if seen[row["edit_type"]] <= most and len(chosen) < num:
            chosen.append(row)
    return chosen


def _mark(row: Mapping[str, Any]) -> float:
    """3 for a success, then how much of it holds; an edit that nobody judged has 0."""
    if row.get("success") is None:
        return 0.0
    return 3.0 * bool(row["success"]) + bool(row.get("done")) + bool(row.get("kept")) + bool(row.get("legible"))


def _ranks(values: Sequence[float | None]) -> Any:
    """Mean ranks in 0 … 1, what has no value in the middle; None where fewer than two have one."""
    found = np.array([math.nan if value is None else value for value in values], np.float64)
    finite = np.isfinite(found)
    if finite.sum() < 2:
        return None
    from scipy.stats import rankdata

    ranks = np.full(len(found), 0.5)
    ranks[finite] = (rankdata(found[finite]) - 1) / (finite.sum() - 1)
    return ranks
