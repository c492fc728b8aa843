"""Plans the parts in which a dataset is written, and takes the first of its two passes.

The first pass takes a bundle of shards and appends every chosen row to a spill file of the group of files that it
belongs to; the second (`dataset.files`) takes a group, puts the rows of each file in order and writes it. Parts may run
at the same time and on their own. Everything lies in a hidden folder, where a part that is whole stays when the process
ends, and is not made again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ip2p import store
from ip2p.dataset.further import FOLDER, Further
from ip2p.dataset.schema import WRITTEN
from ip2p.dataset.split import OutputFile

BUNDLE_BYTES = 2**30
"""Size of the shards that are gathered in one part."""
GROUP_BYTES, MOST_GROUPS = 2**28, 64
"""Size of the files that are written in one part, unless there are too many: each has a spill file open at a time."""
READ_BYTES = 64 * 2**20
"""Size of the rows that are held at a time."""
BUFFER = 1 << 20
"""Bytes of a column that are read ahead; without a buffer parquet reads all of a row group's."""
PLAN = "plan.json"
RESULT = "dataset"
"""Folder in the hidden one that becomes the dataset."""
SPILLS = "spills"
"""Folder of the spill files, which has a folder for each bundle."""
ADDED = ("file", "position", "size")
"""Columns of a spill file beside the dataset's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the parts share; the rows of the files lie beside it in a table."""

    seconds: float
    """What planning took."""
    counts: dict[str, Any]
    shards: list[str]
    """Files of pairs, by their number in the table."""
    bundles: list[list[int]]
    """The first shard of each part of the first pass, and the one after its last."""
    files: list[OutputFile]
    files_per_group: int
    """Files that each part of the second pass writes."""
    further: list[str]
    """Columns of further pictures."""

    @property
    def num_groups(self) -> int:
        """Returns the number of parts of the second pass."""
        return -(-len(self.files) // self.files_per_group)


def files_per_group(num_files: int, shards: Sequence[Path]) -> int:
    """Returns how many files a part of the second pass writes, if the dataset is as large as the shards."""
    num_groups = -(-sum(path.stat().st_size for path in shards) // GROUP_BYTES)
    return -(-num_files // min(num_files, num_groups, MOST_GROUPS))


def bundles_of(shards: Sequence[Path]) -> list[list[int]]:
    """Cuts the shards into bundles of about `BUNDLE_BYTES`."""
    bundles, size = [[0, 0]], 0
    for number, path in enumerate(shards):
        if size >= BUNDLE_BYTES:
            bundles.append([number, number])
            size = 0
        bundles[-1][1] = number + 1
        size += path.stat().st_size
    return bundles


def write_plan(folder: Path, plan: Plan, rows: pa.Table, schema: pa.Schema) -> None:
    """Writes a plan, its table of rows and the dataset's schema into the hidden folder; the plan last."""
    store.write_atomic(folder / "rows.arrow", partial(_write_table, table=rows))
    store.write_bytes(folder / "schema.arrow", schema.serialize().to_pybytes())
    store.write_json(folder / PLAN, asdict(plan))


def read_plan(folder: Path) -> Plan:
    """Reads a plan. RuntimeError if there is none."""
    values = store.read_json_or_empty(folder / PLAN)
    if not values:
        raise RuntimeError(f"{folder} has no plan of the dataset. Plan it first.")
    return Plan(**{**values, "files": [OutputFile(**file) for file in values["files"]]})


def read_schema(folder: Path) -> pa.Schema:
    """Reads the schema of a planned dataset."""
    return pa.ipc.read_schema(pa.py_buffer((folder / "schema.arrow").read_bytes()))


def _write_table(file: IO[bytes], table: pa.Table) -> None:
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def gather_pairs(folder: Path, number: int) -> None:
    """Appends the chosen rows of a bundle of shards to the spill files of the groups, unless that is done."""
    spills, started = folder / SPILLS / f"{number:05d}", time.monotonic()
    if spills.exists():
        return
    plan, schema = read_plan(folder), read_schema(folder)
    spills.parent.mkdir(exist_ok=True)
    partial_folder = Path(tempfile.mkdtemp(prefix=".", dir=spills.parent))
    with ExitStack() as stack:
        groups = _Groups(partial_folder, stack)
        for batch in _chosen_rows(folder, plan, number, schema):
            groups.append(batch, plan.files_per_group)
        groups.flush()
    store.write_json(partial_folder / "seconds.json", {"seconds": time.monotonic() - started})
    try:
        partial_folder.rename(spills)
    except OSError:  # another process has done the same
        shutil.rmtree(partial_folder)


class _Groups:
    """The spill files of a bundle, by group, each opened when it gets its first row."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._files: dict[int, IO[bytes]] = {}
        self._streams: dict[int, pa.RecordBatchStreamWriter] = {}

    def append(self, batch: pa.RecordBatch, files_per_group: int) -> None:
        """Appends rows to the files of their groups."""
        groups = batch["file"].to_numpy() // files_per_group
        order = np.argsort(groups, kind="stable")
        batch, groups = batch.take(pa.array(order)), groups[order]
        numbers, starts = np.unique(groups, return_index=True)
        for group, start, end in zip(numbers, starts, [*starts[1:], len(groups)], strict=True):
            self._stream(int(group), batch.schema).write_batch(batch.slice(start, end - start))

    def _stream(self, group: int, schema: pa.Schema) -> pa.RecordBatchStreamWriter:
        if group not in self._streams:
            self._files[group] = self._stack.enter_context((self._folder / f"{group:05d}.arrow").open("wb"))
            self._streams[group] = self._stack.enter_context(pa.ipc.new_stream(self._files[group], schema))
        return self._streams[group]

    def flush(self) -> None:
        """Ends all files and puts them on disk."""
        for group, file in self._files.items():
            self._streams[group].close()
            file.flush()
            os.fsync(file.fileno())


def _chosen_rows(folder: Path, plan: Plan, number: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields the chosen rows of a bundle in batches of about `READ_BYTES`, with their file, place in it and size."""
    held, size = list[pa.RecordBatch](), 0
    for shard in range(*plan.bundles[number]):
        path, rows = Path(plan.shards[shard]), _rows_of(folder, shard)
        for first, batch in _batches(folder.parent / path, schema, plan.further) if len(rows) else ():
            start, end = np.searchsorted(rows["row"].to_numpy(), [first, first + len(batch)])
            rows_of_batch = rows.slice(start, end - start)
            if not len(rows_of_batch):
                continue
            chosen = batch.take(pc.subtract(rows_of_batch["row"], first))
            sizes = pa.array(row_sizes(chosen))
            for name, values in zip(ADDED, (rows_of_batch["file"], rows_of_batch["position"], sizes), strict=True):
                chosen = chosen.append_column(name, values)
            held.append(chosen)
            size += int(pc.sum(sizes).as_py())
            if size >= READ_BYTES:
                yield _as_one(held)
                held, size = [], 0
    if held:
        yield _as_one(held)


def _as_one(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _rows_of(folder: Path, shard: int) -> pa.RecordBatch:
    """Reads which rows of a shard go where, in the order of the rows."""
    with pa.memory_map(str(folder / "rows.arrow")) as file:
        rows = pa.ipc.open_file(file).get_batch(0)
        start, end = np.searchsorted(rows["shard"].to_numpy(), [shard, shard + 1])
        return rows.slice(start, end - start)


def _batches(path: Path, schema: pa.Schema, further: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields the rows with the columns of the dataset; those that a shard lacks are null."""
    pictures, first = Further(further_of(path), further), 0
    plain = pa.schema([field for field in schema if field.name not in further])
    with pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
        present = [name for name in plain.names if name in file.schema_arrow.names]
        size = max(1, path.stat().st_size // max(1, file.metadata.num_rows))
        for batch in file.iter_batches(batch_size=max(1, READ_BYTES // size), columns=present):
            columns = [
                batch[field.name].cast(field.type) if field.name in present else pa.nulls(len(batch), field.type)
                for field in plain
            ]
            yield first, pictures.add_to(_with_shown(pa.RecordBatch.from_arrays(columns, schema=plain)))
            first += batch.num_rows


def further_of(shard: Path) -> Path:
    """Returns the shard of further pictures that belongs to one of pairs."""
    return shard.parent.with_name(FOLDER) / shard.name


def _with_shown(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Puts the instruction that a pair shows in place of the written one, if the latter has a column of its own."""
    if WRITTEN not in batch.schema.names:
        return batch
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    written = columns[WRITTEN] = columns["edit_prompt"]
    if "shown_prompt" in columns:
        shown_prompts = pc.fill_null(columns["shown_prompt"], "")
        columns["edit_prompt"] = pc.if_else(pc.equal(shown_prompts, ""), written, shown_prompts)
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)


def row_sizes(batch: pa.RecordBatch) -> np.ndarray:
    """Returns the bytes of each row in memory: values, the offset of a text, and one for each null."""
    return _sizes(batch.columns, len(batch))


def _sizes(columns: Sequence[pa.Array], num_rows: int) -> np.ndarray:
    sizes = np.zeros(num_rows, dtype=np.int64)
    for column in columns:
        sizes += np.asarray(column.is_null())
        if pa.types.is_struct(column.type):
            sizes += _sizes(column.flatten(), num_rows)
        elif pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            sizes += np.asarray(pc.fill_null(pc.binary_length(column), 0)) + 4
        else:
            sizes += -(-column.type.bit_width // 8)
    return sizes
