"""What a run folder has to tell: every table and figure the report shows, each left out where it is not there.

A missing or unreadable part is None or empty, never an error: a report of half a run is still a report.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import PipelineConfig, to_dict
from ip2p.prompts.statistics import COLUMNS as GENERATION_COLUMNS

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
TEXTS = ("edit_type", "original_prompt", "edit_prompt", "edited_prompt")
EDIT_COLUMNS = (*TEXTS, "case", "success", "done", "kept", "legible", "clip_direction", "clip_image")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Everything that was found; the tables without their pictures."""

    name: str
    config: Row
    summary: Row = field(default_factory=dict)
    triplets: list[Row] = field(default_factory=list)
    candidates: list[Row] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)
    """Rows of the pairs table; `file` and `index` say where the pictures are."""
    oracle: dict[tuple[str, int], Row] = field(default_factory=dict)
    """The domain's verdict of a pair by (triplet id, candidate)."""
    loss: list[Row] = field(default_factory=list)
    figures: Row = field(default_factory=dict)
    """The evaluation's figures."""
    edits: list[Row] = field(default_factory=list)
    """The trained editor's held-out edits; `file` and `index` say where the pictures are."""
    cases: Path | None = None
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
        triplets=_table(run.shards("triplets"), GENERATION_COLUMNS),
        candidates=_table(run.shards("candidates"), _CANDIDATE),
        pairs=_table(run.shards("pairs"), (*_CANDIDATE, *TEXTS[1:], "triplet_id", "candidate"), where=True),
        oracle=_read_oracle(run),
        loss=_or([], lambda: _read_lines(run.training / "loss.jsonl")),
        figures=figures,
        edits=_read_edits(run, figures),
        cases=path if (path := run.evaluation / "cases.parquet").exists() else None,
        seconds=_read_seconds(run, summary, figures),
        versions=read_versions(),
    )


_CANDIDATE = ("edit_type", "accepted", "reason", "clip_original", "clip_edited", "clip_direction", "clip_image")


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


def _table(files: Iterable[Path], columns: Sequence[str], *, where: bool = False) -> list[Row]:
    rows: list[Row] = []
    for file in files:
        found: list[Row] = _or([], functools.partial(_read_rows, file, columns))
        rows += [row | {"file": file, "index": index} for index, row in enumerate(found)] if where else found
    return rows


def _read_rows(file: Path, columns: Sequence[str]) -> list[Row]:
    return list(pq.read_table(file, columns=list(columns)).to_pylist())


def _read_oracle(run: store.RunFolder) -> dict[tuple[str, int], Row]:
    columns = ("triplet_id", "candidate", "edit_type", "accepted", "success", "done", "kept", "legible")
    rows = _table(run.shards("evaluation/oracle"), columns)
    return {(row["triplet_id"], row["candidate"]): row for row in rows}


def _read_edits(run: store.RunFolder, figures: Row) -> list[Row]:
    names = [str(name) for name in figures.get("parts", ())]
    files = [run.evaluation / "parts" / f"{name}.parquet" for name in names if name.startswith("model-")]
    rows = _table(files, EDIT_COLUMNS, where=True)
    return [row | {"file": run.evaluation / "edits" / row["file"].name} for row in rows]


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


def read_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results, without importing them."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def read_images(rows: Sequence[Row], columns: Sequence[str]) -> list[list[bytes] | None]:
    """The encoded pictures of rows that say where theirs are; None for a row whose pictures are gone."""
    found: dict[tuple[Path, int], list[bytes]] = {}
    for file in {row["file"] for row in rows}:
        wanted = sorted({row["index"] for row in rows if row["file"] == file})
        found |= _or(dict[tuple[Path, int], list[bytes]](), functools.partial(_read_cells, file, wanted, columns))
    return [found.get((row["file"], row["index"])) for row in rows]


def _read_cells(file: Path, wanted: list[int], columns: Sequence[str]) -> dict[tuple[Path, int], list[bytes]]:
    table = pq.read_table(file, columns=list(columns)).take(wanted).to_pylist()
    return {(file, index): [row[name]["bytes"] for name in columns] for index, row in zip(wanted, table, strict=True)}
