"""Reads the pairs: from a folder of parquet files or of pictures, a table, or a dataset on the hub. No torch here.

The latent cache reads rows in order, once; a training without one reads them by number.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ip2p.config import TrainingConfig, fingerprint
from ip2p.sources.content import fingerprint_files
from ip2p.sources.hub import HubTable, lay_out, load_dataset, without_decoding
from ip2p.sources.location import TABLE_SUFFIXES, WAY_OUT, Location, held_out_files, locate, split_files
from ip2p.sources.row import Row, Table
from ip2p.sources.rows import metadata_tables, paired_folders
from ip2p.sources.rows import open_table as open_source
from ip2p.sources.tables import ParquetTable

if TYPE_CHECKING:
    from datasets import IterableDataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RawPair:
    """A row as it is stored: picture files, as content or path, and the instruction."""

    original: bytes | Path | None
    edited: bytes | Path | None
    edit_prompt: str | None
    mask: bytes | Path | None = None


class Rows(Protocol):
    """Rows in a fixed order."""

    fingerprint: str

    def __len__(self) -> int: ...

    def prompts(self) -> list[str | None]:
        """Reads the instructions of all rows, without a picture."""
        ...

    def values(self, column: str) -> list[object]:
        """Reads a column of all rows."""
        ...

    def read(self) -> Iterator[RawPair]:
        """Yields all rows."""
        ...


class SourceRows(Rows, Protocol):
    """Rows of one source, which a cache is filled from."""

    def blocks(self, numbers: Sequence[int], size: int) -> Iterator[Iterable[RawPair]]:
        """Yields blocks of so many rows, given their numbers in order; the last one may have fewer."""
        ...


def open_rows(data: str, config: TrainingConfig) -> SourceRows:
    """Opens the training rows of a folder, a file, a pattern or a hub id.

    ValueError if there are none or a column is missing, with the way out.
    """
    if files := find_files(data):
        return ParquetRows(files, config)
    location = _located(data)
    if location.is_local:
        return _listed_rows(location, config)
    dataset = _load_remote(location, config, streaming=config.streaming)
    return StreamedRows(dataset, config, data) if config.streaming else _dataset_rows(dataset, config, data)


def check_local_data(data: str, config: TrainingConfig) -> None:
    """Requires rows and the config's columns, if the data is on this machine. ValueError as in `open_rows`."""
    if _located(data).is_local:
        open_rows(data, config)


def open_table(data: str, config: TrainingConfig) -> TableRows:
    """Opens the training rows by number; parquet files are laid out for that on disk, once.

    The column to balance by is not among them; the rows in order have it.
    """
    config = replace(config, balance_column=None, balance_weights=())
    location, files = _located(data), find_files(data)
    if location.is_local and not files:
        return _listed_rows(location, config)
    if files:
        columns = Columns.of(config)
        dataset = lay_out(_parquet(files, config), columns.pictures, [columns.prompt], _cache_dir(config))
    else:
        dataset = _load_remote(location, config)
    return _dataset_rows(dataset, config, data)


def find_files(data: str) -> list[Path]:
    """Lists the parquet files of the training split that `data` names; empty if `data` is of another kind.

    ValueError if it names nothing.
    """
    location = _located(data)
    files = split_files(location, "train")
    if location.kind == "glob" and not files:
        raise ValueError(f"no parquet file is called {data}. Give a pattern such as data/train-*.parquet.")
    is_table = location.kind == "path" and location.path.is_file() and location.suffix in TABLE_SUFFIXES
    is_folder = not files and not is_table and (metadata_tables(location) or paired_folders(location))
    if location.kind == "path" and not files and not is_table and not is_folder:
        raise ValueError(f"{data} holds no parquet file of a training split. {WAY_OUT}")
    return files


def find_test_files(data: str) -> list[Path]:
    """Lists the parquet files of a folder's other splits; none of anything that is not a folder."""
    return held_out_files(_located(data))


def _located(data: str) -> Location:
    return locate(data, what="" if data else "data to train on", way_out=WAY_OUT)


def _listed_rows(location: Location, config: TrainingConfig) -> TableRows:
    """Opens the rows of an image folder or of a table that names picture files."""
    table = open_source(location)
    columns = Columns.of(config)
    named = [name for name in columns.names if name != columns.prompt]
    pictures = [row.picture(name) for row in table.read(columns.names) for name in named]
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in pictures if isinstance(path, Path)]
    prompts = [row.text(columns.prompt) for row in table.read([columns.prompt])]
    return TableRows(table, config, location.word, fingerprint("listed", stamps, prompts))


def _load_remote(location: Location, config: TrainingConfig, **options: Any) -> Any:
    named = {"name": getattr(config, "dataset_config_name", None), "cache_dir": _cache_dir(config)}
    options |= {name: value for name, value in named.items() if value is not None}
    return load_dataset(location, split="train", way_out=WAY_OUT, **options)


def _cache_dir(config: TrainingConfig) -> str | None:
    return getattr(config, "cache_dir", None)


def _dataset_rows(dataset: Any, config: TrainingConfig, name: str) -> TableRows:
    columns = Columns.of(config).names
    check_columns(config, dataset.column_names, name)
    num_rows = min(len(dataset), config.max_train_samples or len(dataset))
    kept = dict.fromkeys([*columns, *filter(None, [config.balance_column])])
    table = HubTable(dataset.select_columns(list(kept)).select(range(num_rows)), name)
    return TableRows(table, config, name, table.dataset._fingerprint)


class TableRows:
    """Rows of a table, by number or in order."""

    def __init__(self, table: Table, config: TrainingConfig, name: str, identity: object) -> None:
        self.columns = Columns.of(config)
        check_columns(config, table.names, name)
        if not len(table):
            raise ValueError(f"{name} has no rows. Give a dataset with at least one pair.")
        self.table = table
        self.num_rows = min(len(table), config.max_train_samples or len(table))
        self.fingerprint = fingerprint(name, identity)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, number: int) -> RawPair:
        return self.columns.pair(self.table.row(number, self.columns.names))

    def prompts(self) -> list[str | None]:
        """Reads the instructions of all rows."""
        rows = self.table.read([self.columns.prompt], stop=self.num_rows)
        return [row.wording(self.columns.prompt) for row in rows]

    def values(self, column: str) -> list[object]:
        """Reads a column of all rows."""
        return [row.values.get(column) for row in self.table.read([column], stop=self.num_rows)]

    def read(self) -> Iterator[RawPair]:
        """Yields all rows; memory holds one batch."""
        return self._between(0, self.num_rows)

    def blocks(self, numbers: Sequence[int], size: int) -> Iterator[Iterable[RawPair]]:
        """Yields blocks of so many rows; no others are read, but for those of the same row group."""
        return (self._between(size * number, min(size * number + size, self.num_rows)) for number in numbers)

    def _between(self, first: int, stop: int) -> Iterator[RawPair]:
        return (self.columns.pair(row) for row in self.table.read(self.columns.names, first, stop))


class ParquetRows(TableRows):
    """Rows of local parquet files."""

    def __init__(self, files: list[Path], config: TrainingConfig) -> None:
        super().__init__(_parquet(files, config), config, str(files[0].parent), None)
        self.fingerprint = fingerprint(fingerprint_files(files), self.columns.names, self.num_rows)


def _parquet(files: list[Path], config: TrainingConfig) -> ParquetTable:
    """Opens parquet files, of which each must have the columns."""
    table = ParquetTable(files)
    for file, names in table.names_by_file.items():
        check_columns(config, names, str(file))
    return table


class StreamedRows:
    """Rows of a hub dataset, read one after another; nothing is downloaded before."""

    def __init__(self, dataset: IterableDataset, config: TrainingConfig, name: str) -> None:
        self.columns = Columns.of(config)
        columns = dataset.column_names or list(next(iter(dataset)))
        check_columns(config, columns, name)
        self.all_columns = dataset
        self.dataset = without_decoding(dataset.select_columns(list(dict.fromkeys(self.columns.names))))
        self.limit, self.name = config.max_train_samples, name
        self._prompts: list[str | None] | None = None
        self.fingerprint = fingerprint(name, columns, self.limit, "streaming")

    def __len__(self) -> int:
        return len(self.prompts())

    def prompts(self) -> list[str | None]:
        """Reads the instructions of all rows in a separate pass."""
        if self._prompts is None:
            rows = itertools.islice(self.dataset.select_columns([self.columns.prompt]), self.limit)
            self._prompts = [Row(row, self.name).wording(self.columns.prompt) for row in rows]
        return self._prompts

    def values(self, column: str) -> list[object]:
        """Reads a column of all rows in a separate pass."""
        rows = itertools.islice(self.all_columns.select_columns([column]), self.limit)
        return [row[column] for row in rows]

    def read(self) -> Iterator[RawPair]:
        """Yields all rows."""
        return (self.columns.pair(Row(row, self.name)) for row in itertools.islice(self.dataset, self.limit))

    def blocks(self, numbers: Sequence[int], size: int) -> Iterator[Iterable[RawPair]]:
        """Yields blocks of so many rows, in one pass up to the last of them."""
        rows = self.read()
        for number in range(max(numbers, default=-1) + 1):
            block = list(itertools.islice(rows, size))
            if number in numbers:
                yield block


def check_columns(config: TrainingConfig, columns: Sequence[str], where: str) -> None:
    """Raises a ValueError, which lists the columns, if one of the config is missing."""
    further = [knob for knob in ("balance_column", "mask_column") if getattr(config, knob)]
    for knob in ("original_image_column", "edited_image_column", "edit_prompt_column", *further):
        name = getattr(config, knob)
        if name not in columns:
            present = ", ".join(columns) or "none"
            raise ValueError(f"{where} has no column {name!r}; its columns are: {present}. Set training.{knob}.")


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns that a training reads."""

    original: str
    edited: str
    prompt: str
    mask: str | None = None

    @classmethod
    def of(cls, config: TrainingConfig) -> Columns:
        """Reads them off a config."""
        names = config.original_image_column, config.edited_image_column, config.edit_prompt_column
        return cls(*names, config.mask_column)

    @property
    def pictures(self) -> list[str]:
        """The columns of picture files, each once."""
        masks = [] if self.mask is None else [self.mask]
        return list(dict.fromkeys([self.original, self.edited, *masks]))

    @property
    def names(self) -> list[str]:
        """All columns: the two images, the instruction and, if there is one, the mask."""
        masks = [] if self.mask is None else [self.mask]
        return [self.original, self.edited, self.prompt, *masks]

    def pair(self, row: Row) -> RawPair:
        """Takes a pair from a row."""
        mask = None if self.mask is None else row.picture(self.mask)
        return RawPair(row.picture(self.original), row.picture(self.edited), row.wording(self.prompt), mask)
