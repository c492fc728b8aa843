"""Answers of a server, kept as they come: one line each, on disk before the next request is counted as done.

A line that a kill cut short is ignored and asked for again. Keys say all that was asked, so an answer is only ever used
for the same question.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

logger = logging.getLogger(__name__)


class Journal:
    """An append-only file of answers by key; several threads may add to it."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        self._found = _read(path)

    def get(self, key: str) -> dict[str, Any] | None:
        """What was answered to this question before."""
        return self._found.get(key)

    def add(self, key: str, answer: dict[str, Any]) -> None:
        """Returns when the answer is on disk; the first answer to a question stays."""
        with self._lock:
            if key in self._found:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"key": key, **answer}, ensure_ascii=False) + "\n"
            with self.path.open("ab+") as file:
                file.write(_line_break_before(file) + line.encode())
                file.flush()
                os.fsync(file.fileno())
            self._found[key] = answer

    def __len__(self) -> int:
        return len(self._found)


def _line_break_before(file: Any) -> bytes:
    """Ends a line that a kill cut short."""
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else (), start=1):
        try:
            record = json.loads(line) if line else None
        except ValueError:
            logger.warning("%s line %d was cut short and is asked for again", path, number)
            continue
        if isinstance(record, dict) and "key" in record:
            found.setdefault(str(record.pop("key")), record)
    return found


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
