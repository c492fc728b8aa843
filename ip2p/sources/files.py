"""Reads one file, local or at a URL: lines of text, JSON lines, csv or parquet.

An error names the file and the line or row. Parquet is read by column and in small batches.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p.console import first_line
from ip2p.sources.location import Location

Values = dict[str, Any]
"""A row, by column."""

BATCH_ROWS = 64
"""Rows with pictures that are in memory at a time."""
TEXT_BATCH_ROWS = 4096
MAX_CELL = 1 << 30
"""Characters of a csv cell."""


class Unreadable(ValueError):
    """Names a source that cannot be read, and why."""


@contextmanager
def open_file(location: Location) -> Iterator[IO[bytes]]:
    """Opens a file or a URL. ValueError if that fails, or if the text read from it is not UTF-8."""
    try:
        if location.is_local:
            opened: IO[bytes] = location.path.open("rb")
        else:
            import fsspec

            opened = fsspec.open(location.word, "rb").open()
    except (ImportError, ValueError, OSError) as error:
        raise Unreadable(f"{location.word} cannot be opened: {error}.") from error
    with closing(opened):
        try:
            yield opened
        except UnicodeDecodeError as error:
            raise Unreadable(f"{location.word} is not UTF-8 text ({error.reason} at byte {error.start}).") from None


def read_lines(file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Yields numbered lines, from 1, without blank ones; only `\\n` ends a line, no other Unicode line break."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
    yield from ((number, line) for number, line in enumerate(text, start=1) if line.strip())
    text.detach()


def read_json_lines(file: IO[bytes], where: str) -> Iterator[tuple[int, Any]]:
    """Yields the numbered values of JSON lines. ValueError names a line that is not JSON."""
    for number, line in read_lines(file):
        try:
            yield number, parse_json(line)
        except ValueError as error:
            raise Unreadable(f"{where} line {number} is not valid JSON: {error}.") from error


def parse_json(text: str) -> Any:
    """Parses a JSON text. ValueError if it is not valid, nests too deeply or holds what is not Unicode."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error
    if "\\ud" in text or "\\uD" in text:  # perhaps half of a surrogate pair, which no file of UTF-8 can hold
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_json_array(file: IO[bytes], where: str) -> Iterator[tuple[int, Any]]:
    """Yields the numbered entries of one JSON array. ValueError if the file is not one."""
    try:
        value = parse_json(file.read().decode("utf-8-sig"))
    except ValueError as error:
        raise Unreadable(f"{where} is not valid JSON: {error}.") from error
    if not isinstance(value, list):
        raise Unreadable(f"{where} must hold one JSON array of objects, got {type(value).__name__}.")
    yield from enumerate(value, start=1)


def read_json_file(path: Path) -> list[tuple[int, Any]]:
    """Reads a local file of JSON lines: numbered values. ValueError names a line that is not JSON."""
    with open_file(Location(str(path), "path")) as file:
        return list(read_json_lines(file, str(path)))


def read_csv(file: IO[bytes], where: str) -> Iterator[tuple[int, Values]]:
    """Yields the numbered rows of a csv file with a header. ValueError names a quote that is never closed."""
    csv.field_size_limit(MAX_CELL)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    lines: list[str] = []  # of the current row
    number = 0
    try:
        for number, values in enumerate(csv.DictReader(_remembered(text, lines)), start=1):
            yield number, {name: value for name, value in values.items() if name is not None}
            last, lines[:] = list(lines), []
        if number and _is_open(last):
            raise Unreadable(f"{where} row {number} opens a quote that is never closed.")
    except csv.Error as error:
        raise Unreadable(f"{where} row {number + 1} is not valid csv: {error}.") from error
    text.detach()


def _remembered(text: Iterable[str], lines: list[str]) -> Iterator[str]:
    for line in text:
        lines.append(line)
        yield line


def _is_open(lines: Sequence[str]) -> bool:
    """Returns whether a row's lines end inside a quote, which Python's reader only reports if it is strict."""
    try:
        list(csv.reader(lines, strict=True))
    except csv.Error as error:
        return "end of data" in str(error)
    return False


def read_parquet(
    source: Path | IO[bytes], columns: Sequence[str], first: int = 0, stop: int | None = None
) -> Iterator[Values]:
    """Yields the rows of a parquet file with these columns; memory holds few rows if there are pictures among them.

    Of rows number `first` to `stop` alone, the row groups that hold none of them are not read. ValueError names a file
    that is broken.
    """
    with _naming(source), pq.ParquetFile(source) as opened:
        is_heavy = any(_is_heavy(opened.schema_arrow.field(name).type) for name in columns)
        size = BATCH_ROWS if is_heavy else TEXT_BATCH_ROWS
        footer = opened.metadata
        starts = [0, *accumulate(footer.row_group(group).num_rows for group in range(footer.num_row_groups))]
        stop = starts[-1] if stop is None else min(stop, starts[-1])
        groups = [group for group, (low, high) in enumerate(pairwise(starts)) if low < stop and high > first]
        number = starts[groups[0]] if groups else stop
        for batch in opened.iter_batches(batch_size=size, row_groups=groups, columns=list(columns)):
            rows = batch.slice(max(0, first - number), max(0, stop - max(first, number)))
            yield from rows.to_pylist()
            number += len(batch)


@contextmanager
def _naming(source: object) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = first_line(error).rstrip(".")
        raise Unreadable(f"{source} cannot be read as parquet: {reason}. Remove it or write it again.") from error


def read_plain_columns(file: IO[bytes], word: str) -> Iterator[Values]:
    """Yields the rows of a parquet file without the columns that may hold pictures."""
    with _naming(word):
        plain = [field.name for field in pq.ParquetFile(file).schema_arrow if not _is_heavy(field.type)]
        file.seek(0)
        yield from read_parquet(file, plain)


def _is_heavy(kind: pa.DataType) -> bool:
    """Returns whether a column may hold pictures."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_footer(file: Path) -> tuple[list[str], int]:
    """Reads the column names and the number of rows."""
    with _naming(file), pq.ParquetFile(file) as opened:
        return list(opened.schema_arrow.names), opened.metadata.num_rows


def read_row(file: Path, number: int, columns: tuple[str, ...]) -> Values:
    """Reads one row, counted from 0; its row group is kept for the next call."""
    with _naming(file), pq.ParquetFile(file) as opened:
        sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.metadata.num_row_groups)]
    for group, size in enumerate(sizes):
        if number < size:
            written_at = file.stat().st_mtime_ns
            values: Values = _row_group(file, written_at, group, columns).slice(number, 1).to_pylist()[0]
            return values
        number -= size
    raise Unreadable(f"{file} has become shorter since it was opened. Open it again.")


@lru_cache(maxsize=2)
def _row_group(file: Path, written_at: int, group: int, columns: tuple[str, ...]) -> pa.Table:
    with _naming(file), pq.ParquetFile(file) as opened:
        return pa.Table.from_batches(opened.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(columns)))
