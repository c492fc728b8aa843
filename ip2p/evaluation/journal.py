"""Edited pictures on disk as they are made: a kill loses the batch in flight, not the part.

A file of records, each a length and an Arrow stream, added with fsync; what a kill cut short is dropped and made again.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

_LENGTH = struct.Struct("<Q")


class EditJournal:
    """The rows of a part that is not finished."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema

    def read(self) -> list[dict[str, Any]]:
        """All whole rows; a record that was cut short is removed from the file."""
        if not self.path.exists():
            return []
        with self.path.open("rb+") as file:
            rows: list[dict[str, Any]] = []
            for table in _whole(file):
                rows += table.to_pylist()
            file.truncate()
        return rows

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Returns when the rows are on disk."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.schema) as writer:
            writer.write_table(pa.Table.from_pylist(list(rows), schema=self.schema))
        content = sink.getvalue().to_pybytes()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(_LENGTH.pack(len(content)) + content)
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """The part is finished."""
        self.path.unlink(missing_ok=True)


def _whole(file: Any) -> Iterator[pa.Table]:
    """The records up to the first that is not whole; leaves the file's position at its start."""
    while True:
        start = file.tell()
        head = file.read(_LENGTH.size)
        content = file.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
        if not content or len(content) < _LENGTH.unpack(head)[0]:
            file.seek(start)
            return
        yield pa.ipc.open_stream(content).read_all()
