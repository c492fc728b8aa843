"""Tables of rows: parquet files, archives of WebDataset, and rows in memory. Nothing is decoded here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

from ip2p.sources.files import read_footer, read_parquet, read_row
from ip2p.sources.row import Row
from ip2p.sources.tars import read_index, read_sample

LOOKED_INTO = 8
"""Samples of an archive that are read for the names of their columns."""


class ParquetTable:
    """Rows of parquet files; memory holds a batch of one file at a time."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        opened = [read_footer(file) for file in self.files]
        self.names_by_file = {file: names for file, (names, _) in zip(self.files, opened, strict=True)}
        self.num_rows = [num_rows for _, num_rows in opened]

    @property
    def names(self) -> list[str]:
        """The columns of all files, in order of first appearance."""
        return list(dict.fromkeys(name for names in self.names_by_file.values() for name in names))

    def __len__(self) -> int:
        return sum(self.num_rows)

    def read(self, columns: Sequence[str], first: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Yields all rows, or some, with these columns, if their file has them. ValueError names a broken file.

        Files and row groups without such rows are not read.
        """
        last = len(self) if stop is None else stop
        begin = 0
        for file, num_rows in zip(self.files, self.num_rows, strict=True):
            low, high = max(first - begin, 0), min(last - begin, num_rows)
            begin += num_rows
            if low >= high:
                continue
            present = [name for name in dict.fromkeys(columns) if name in self.names_by_file[file]]
            for number, values in enumerate(read_parquet(file, present, low, high), start=low + 1):
                yield Row(values, f"{file} row {number}", file.parent)

    def row(self, number: int, columns: Sequence[str]) -> Row:
        """Returns one row, counted from 0; its row group is read and kept for the next call."""
        left = number
        for file, num_rows in zip(self.files, self.num_rows, strict=True):
            if left < num_rows:
                present = tuple(name for name in columns if name in self.names_by_file[file])
                return Row(read_row(file, left, present), f"{file} row {left + 1}", file.parent)
            left -= num_rows
        raise IndexError(f"row {number} of {len(self)}")


class ListTable:
    """Rows in memory: tables of texts and paths."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    @cached_property
    def names(self) -> list[str]:
        """The columns of all rows, in order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, columns: Sequence[str], first: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Yields all rows, or some, whole."""
        return islice(self.rows, first, stop)

    def row(self, number: int, columns: Sequence[str]) -> Row:
        """Returns one whole row, counted from 0."""
        return self.rows[number]


class TarTable:
    """Rows of WebDataset archives; memory holds where each sample's files lie, and one sample at a time."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.samples = [(file, sample) for file in files for sample in read_index(file)]

    @cached_property
    def names(self) -> list[str]:
        """The columns of each archive's first samples, in order of first appearance."""
        seen, names = Counter[Path](), dict[str, None]()
        for file, sample in self.samples:
            if seen[file] < LOOKED_INTO:
                names |= dict.fromkeys(read_sample(file, sample))
            seen[file] += 1
        return list(names)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, columns: Sequence[str], first: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Yields all rows, or some, whole."""
        return (self.row(number, columns) for number in range(len(self))[first:stop])

    def row(self, number: int, columns: Sequence[str]) -> Row:
        """Returns one whole row, counted from 0."""
        file, sample = self.samples[number]
        return Row(read_sample(file, sample), f"{file} sample {sample.key}", file.parent)
