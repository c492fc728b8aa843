"""Pictures that imported pairs have beside their two: a second reference and a mask.

They lie in shards of their own, `further/`, with the rows that have any, so that judging the pairs anew leaves them as
they are. A run without such pictures has no such folder, and its dataset no such columns.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p import store
from ip2p.images import IMAGE_TYPE, format_of
from ip2p.records import content_hash
from ip2p.sources.columns import FURTHER_PICTURES

FOLDER = "further"
Key = tuple[str, int]
"""(triplet id, candidate number), as pairs are identified in a shard."""


def write_further(path: Path, pictures: Mapping[Key, Mapping[str, bytes]]) -> None:
    """Writes a shard with the pictures by pair and column; removes it if there are none."""
    started = time.monotonic()
    rows = [_as_row(key, files) for key, files in pictures.items() if files]
    if not rows:
        store.sidecar_path(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return
    columns = [name for name in FURTHER_PICTURES if any(name in row for row in rows)]
    keys = [("triplet_id", pa.string()), ("candidate", pa.int64())]
    table = pa.Table.from_pylist(rows, schema=pa.schema([*keys, *((name, IMAGE_TYPE) for name in columns)]))
    digest = content_hash(*(file for files in pictures.values() for file in files.values()))
    store.write_shard(path, table, fingerprint=digest, seconds=time.monotonic() - started)


def _as_row(key: Key, files: Mapping[str, bytes]) -> dict[str, object]:
    triplet_id, candidate = key
    names = {name: f"{triplet_id}-{candidate}-{name}.{format_of(content)}" for name, content in files.items()}
    cells = {name: {"bytes": content, "path": names[name]} for name, content in files.items()}
    return {"triplet_id": triplet_id, "candidate": candidate, **cells}


def further_columns(shards: Iterable[Path]) -> tuple[str, ...]:
    """Returns the columns of pictures that the shards hold."""
    present = {name for path in shards for name in pq.read_schema(path).names}
    return tuple(name for name in FURTHER_PICTURES if name in present)


class Further:
    """The pictures of one shard, by pair."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.columns = columns
        self.table = pq.read_table(path) if columns and path.exists() else None
        keys = [] if self.table is None else self.table.select(["triplet_id", "candidate"]).to_pylist()
        self.places = {(row["triplet_id"], row["candidate"]): place for place, row in enumerate(keys)}

    def add_to(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Appends the columns to pairs; null if a pair has no such picture."""
        if not self.columns:
            return batch
        keys = batch.select(["triplet_id", "candidate"]).to_pylist()
        places = pa.array([self.places.get((row["triplet_id"], row["candidate"])) for row in keys], pa.int64())
        for name in self.columns:
            if self.table is not None and name in self.table.column_names:
                cells = self.table[name].combine_chunks().take(places)
            else:
                cells = pa.nulls(len(batch), IMAGE_TYPE)
            batch = batch.append_column(name, cells)
        return batch
