"""Writes the parquet files of a dataset from the spill files of the first pass (`dataset.spilling`)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from ip2p import store
from ip2p.dataset.schema import CHUNKING, ROW_GROUP_BYTES, open_writer
from ip2p.dataset.spilling import ADDED, RESULT, SPILLS, Plan, read_plan, read_schema
from ip2p.dataset.split import OutputFile

NOTES = "notes"
"""Folder of a note for each file that is whole: its entry in the manifest, and what it took."""


def write_group(folder: Path, number: int) -> None:
    """Writes the files of a group that are not there, then removes its spill files."""
    plan = read_plan(folder)
    first = number * plan.files_per_group
    missing = {
        place: file
        for place, file in enumerate(plan.files[first : first + plan.files_per_group], start=first)
        if read_note(folder, file) is None
    }
    spills = [folder / SPILLS / f"{bundle:05d}" / f"{number:05d}.arrow" for bundle in range(len(plan.bundles))]
    if missing:
        schema = read_schema(folder)
        batches = [batch for path in spills if path.exists() for batch in _read_spill(path)]
        for place, file in missing.items():
            _write_noted(folder, file, _Rows.of(place, batches), schema)
    for path in spills:
        path.unlink(missing_ok=True)


def _read_spill(path: Path) -> list[pa.RecordBatch]:
    """Opens the batches of a spill file; their pictures are read when they are used."""
    with pa.memory_map(str(path)) as file:
        return list(pa.ipc.open_stream(file))


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of one file, in order: the batch that each is in, its place there, and its size."""

    batches: Sequence[pa.RecordBatch]
    batch: np.ndarray
    row: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, file: int, batches: Sequence[pa.RecordBatch]) -> _Rows:
        rows_by_batch = [np.flatnonzero(batch["file"].to_numpy() == file) for batch in batches]
        row = np.concatenate(rows_by_batch)
        numbers = np.repeat(np.arange(len(batches)), [len(rows) for rows in rows_by_batch])
        position, size = (
            np.concatenate([batch[name].to_numpy()[rows] for batch, rows in zip(batches, rows_by_batch, strict=True)])
            for name in ("position", "size")
        )
        order = np.argsort(position)
        return cls(batches, numbers[order], row[order], size[order])

    def __len__(self) -> int:
        return len(self.row)

    def take(self, start: int, end: int) -> pa.Table:
        """Returns some of the rows as a table of one chunk."""
        numbers, rows = self.batch[start:end], self.row[start:end]
        order = np.argsort(numbers, kind="stable")
        present, starts = np.unique(numbers[order], return_index=True)
        parts = np.split(rows[order], starts[1:])
        taken = [self.batches[number].take(pa.array(part)) for number, part in zip(present, parts, strict=True)]
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        return pa.Table.from_batches(taken).combine_chunks().take(pa.array(place)).drop_columns(list(ADDED))


def _write_noted(folder: Path, output: OutputFile, rows: _Rows, schema: pa.Schema) -> None:
    """Writes a file and, last, its note. RuntimeError if rows are missing."""
    started = time.monotonic()
    if len(rows) != output.num_rows:
        raise RuntimeError(f"{output.name} has {len(rows)} of {output.num_rows} rows. Remove {folder} and start again.")
    path = folder / RESULT / "data" / output.name
    digest = store.write_atomic(path, partial(_write_file, rows=rows, schema=schema))
    note = {
        "path": f"data/{output.name}",
        "rows": output.num_rows,
        "bytes": path.stat().st_size,
        "sha256": digest,
        "version": store.version_of(path),
    }
    store.write_json(_note_path(folder, output), {"file": note, "seconds": time.monotonic() - started})


def _write_file(file: IO[bytes], rows: _Rows, schema: pa.Schema) -> None:
    with open_writer(file, schema) as writer:
        writer.add_key_value_metadata({"content_defined_chunking": json.dumps(CHUNKING)})
        for start, end in _row_groups(rows.size):
            writer.write_table(rows.take(start, end).cast(schema), row_group_size=end - start)


def _row_groups(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cuts the rows into groups of at most `ROW_GROUP_BYTES`, each of at least one row; yields their bounds."""
    start, size = 0, 0
    for row, each in enumerate(sizes.tolist()):
        if row > start and size + each > ROW_GROUP_BYTES:
            yield start, row
            start, size = row, 0
        size += each
    if len(sizes):
        yield start, len(sizes)


def read_note(folder: Path, output: OutputFile) -> dict[str, Any] | None:
    """Reads the entry of a file in the manifest, and the seconds that it took; None if the file is not there whole."""
    path, note = folder / RESULT / "data" / output.name, _note_path(folder, output)
    values = store.read_json_or_empty(note)
    if not values or not path.exists():
        return None
    file = values["file"]
    return values if store.is_whole(path, file["sha256"], file["version"], noted_in=note) else None


def read_entries(folder: Path, plan: Plan) -> list[dict[str, Any]]:
    """Reads the entries of all files in the manifest. RuntimeError if a file is missing."""
    notes = {output.name: read_note(folder, output) for output in plan.files}
    if missing := [name for name, note in notes.items() if note is None]:
        raise RuntimeError(f"{len(missing)} files of the dataset, first {missing[0]}, are missing. Write them first.")
    return [note["file"] for note in notes.values() if note]


def seconds_of(folder: Path) -> float:
    """Adds up the seconds of all parts, whoever took them."""
    notes = [*(folder / NOTES).glob("*.json"), *(folder / SPILLS).glob("*/seconds.json")]
    return float(sum(store.read_json(path)["seconds"] for path in notes))


def _note_path(folder: Path, output: OutputFile) -> Path:
    return folder / NOTES / f"{output.name}.json"
