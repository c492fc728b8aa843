"""Append-only files of records. A kill can only truncate the last record, which is then ignored and made again."""

from __future__ import annotations

import json
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from ip2p.store.shards import read_json_or_empty, write_bytes, write_json

logger = logging.getLogger(__name__)

Record = dict[str, Any]
"""A JSON object, or a row by column."""


class RecordFile:
    """JSON lines, appended one by one."""

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        """Opens a file; a `durable` one has each record on disk before `append` returns."""
        self.path, self.durable = path, durable

    def read(self) -> list[Any]:
        """Returns all whole records, in order."""
        records = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n") if self.path.is_file() else (), start=1):
            try:
                records += [json.loads(line)] if line.strip() else []
            except ValueError:
                logger.warning("%s line %d is truncated and is ignored", self.path, number)
        return records

    def append(self, record: object) -> None:
        """Appends a record."""
        self._write(f"{json.dumps(record, ensure_ascii=False)}\n".encode(), is_text=True)

    def rewrite(self, records: Sequence[object]) -> None:
        """Replaces all records at once."""
        write_bytes(self.path, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records).encode())

    def remove(self) -> None:
        """Removes the file, once its records are kept elsewhere."""
        self.path.unlink(missing_ok=True)

    def _write(self, content: bytes, *, is_text: bool) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            file.write((_line_break_before(file) if is_text else b"") + content)
            file.flush()
            if self.durable:
                os.fsync(file.fileno())


class Journal(RecordFile):
    """Answers by key; several threads may add to it.

    A key states everything that was asked, so an answer is only used for the same question.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = threading.Lock()
        self._answers: dict[str, Record] = {}
        for record in self.read():
            if isinstance(record, dict) and "key" in record:
                self._answers.setdefault(str(record.pop("key")), record)

    def get(self, key: str) -> Record | None:
        """Returns the stored answer to a question, or None."""
        return self._answers.get(key)

    def add(self, key: str, answer: Record) -> None:
        """Appends an answer, unless the question has one already."""
        with self._lock:
            if key not in self._answers:
                self.append({"key": key, **answer})
                self._answers[key] = answer

    def once(self, key: str, ask: Callable[[], Record]) -> Record:
        """Returns the stored answer to a question; asks and stores it if there is none."""
        if (answer := self.get(key)) is None:
            answer = ask()
            self.add(key, answer)
        return answer

    def __len__(self) -> int:
        return len(self._answers)


class EditJournal(RecordFile):
    """Rows, including pictures, of a part that is not finished: blocks of Arrow, each after its length."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        super().__init__(path)
        self.schema = schema

    def read(self) -> list[Record]:
        """Returns the rows of all whole blocks; a truncated block is removed from the file."""
        if not self.path.exists():
            return []
        with self.path.open("rb+") as file:
            rows = [row for table in _whole_blocks(file) for row in table.to_pylist()]
            file.truncate()
        return rows

    def add(self, rows: Sequence[Record]) -> None:
        """Appends rows."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.schema) as writer:
            writer.write_table(pa.Table.from_pylist(list(rows), schema=self.schema))
        content = sink.getvalue().to_pybytes()
        self._write(_LENGTH.pack(len(content)) + content, is_text=False)


class AnswerFolder:
    """Answers by key, a file each: bytes as they are, or a JSON object. Threads and processes may add to it.

    A key states everything that was asked, and holds only letters and digits. A file is whole or absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> bytes | Record | None:
        """Returns the stored answer to a question, or None."""
        for path in self._paths(key):
            if path.is_file():
                return read_json_or_empty(path) if path.suffix else path.read_bytes()
        return None

    def add(self, key: str, answer: bytes | Record) -> None:
        """Stores an answer."""
        plain, record = self._paths(key)
        if isinstance(answer, bytes):
            write_bytes(plain, answer)
        else:
            write_json(record, answer)

    def _paths(self, key: str) -> tuple[Path, Path]:
        place = self.folder / key[:2] / key  # no folder of a large run holds too many files
        return place, place.with_suffix(".json")


_LENGTH = struct.Struct("<Q")


def _line_break_before(file: IO[bytes]) -> bytes:
    """Returns the line break that a truncated last line lacks, else nothing."""
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def _whole_blocks(file: IO[bytes]) -> Iterator[pa.Table]:
    """Yields the blocks up to the first truncated one, and leaves the file's position at its start."""
    while True:
        start = file.tell()
        head = file.read(_LENGTH.size)
        content = file.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
        if not content or len(content) < _LENGTH.unpack(head)[0]:
            file.seek(start)
            return
        yield pa.ipc.open_stream(content).read_all()
