"""Rows of data, whatever holds them: parquet, JSON lines, csv, image folders, or the hub.

A row knows its place, so that errors name file and number, and the folder that its paths are relative to. Nothing is
decoded and nothing is judged here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ip2p.console import first_line
from ip2p.sources.conversations import without_conversation
from ip2p.sources.files import (
    Unreadable,
    Values,
    open_file,
    read_csv,
    read_footer,
    read_json_array,
    read_json_lines,
    read_parquet,
    read_plain_columns,
    read_row,
)
from ip2p.sources.folders import PairedFolder, find_paired_folders, read_paired_folder
from ip2p.sources.location import (
    EVERY_SPLIT,
    METADATA_NAMES,
    PARQUET,
    SPLITS,
    TABLE_SUFFIXES,
    TAR,
    WAY_OUT,
    Location,
    dataset_in,
    of_split,
    split_files,
    split_of,
    visible_files,
)
from ip2p.sources.tars import read_index, read_sample

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

FILE_NAME = "file_name"
"""The column of an image folder that names the picture; `<column>_file_name` names that of another column."""
LOOKED_INTO = 8
"""Samples of an archive that are read for the names of their columns."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row and its place."""

    values: Mapping[str, Any]
    where: str
    """Such as `pairs.jsonl line 3`."""
    folder: Path | None = None
    """The folder that paths in the row are relative to."""

    def text(self, column: str) -> str:
        """Returns the text of a column, the first one if it holds several wordings; empty if there is none."""
        value = first_wording(self.values.get(column))
        return "" if value is None or value != value else str(value).strip()

    def wording(self, column: str) -> str | None:
        """Returns the text of a column as it is stored, the first if it holds several; None if it has no words."""
        value = first_wording(self.values.get(column))
        return value if isinstance(value, str) and value.strip() else None

    def picture(self, column: str, number: int = 0) -> bytes | Path | None:
        """Returns the picture file of a column, or its path; None if there is none.

        `number` is its place if the column holds a list.
        """
        cell = self.values.get(column)
        if isinstance(cell, list | tuple):
            cell = cell[number] if number < len(cell) else None
        elif number:
            return None
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes | bytearray):
            return bytes(cell) or None
        return self._find(cell) if isinstance(cell, str) and cell else None

    def content(self, column: str, number: int = 0) -> bytes | None:
        """Returns the content of the picture file of a column; None if there is none."""
        picture = self.picture(column, number)
        return picture.read_bytes() if isinstance(picture, Path) else picture

    def _find(self, name: str) -> Path | None:
        path = Path(os.path.expanduser(name))
        places = [path] if self.folder is None else [self.folder / path, path]
        if self.folder is not None and path.is_absolute():  # of another machine, or from before a folder was moved
            places += [self.folder.joinpath(*path.parts[-kept:]) for kept in range(len(path.parts) - 1, 0, -1)]
        return next((place for place in places if os.path.isfile(place)), None)


class Table(Protocol):
    """Rows in a fixed order."""

    @property
    def names(self) -> list[str]:
        """The columns, in order of first appearance."""
        ...

    def __len__(self) -> int: ...

    def read(self, columns: Sequence[str], first: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Yields all rows, or those from number `first` to `stop`, with these columns, if they have them."""
        ...

    def row(self, number: int, columns: Sequence[str]) -> Row:
        """Returns one row, counted from 0."""
        ...


def first_wording(value: Any) -> Any:
    """Returns the first entry of a list, None for an empty one, and anything else as it is."""
    if isinstance(value, list | tuple):
        return value[0] if value else None
    return value


def open_table(
    location: Location, *, split: str = "train", revision: str | None = None, any_split: bool = False
) -> Table:
    """Opens the rows of a split; `any_split` also takes all files if none of them names a split.

    ValueError with the way out if the location holds no data of a known form.
    """
    if location.kind == "hub":
        return HubTable(load_dataset(location, split=split, revision=revision), location.word)
    if location.kind == "url" and location.suffix == PARQUET:
        return HubTable(load_dataset(location, split=split), location.word)
    if location.kind == "url" or (location.path.is_file() and location.suffix in TABLE_SUFFIXES):
        return _list_table(read_file(location), location.word)
    if files := split_files(location, split, any_split=any_split):
        return ParquetTable(files)
    if tables := metadata_tables(location, split, any_split=any_split):
        return _list_table((row for table in tables for row in read_metadata(table)), location.word)
    if tars := split_files(location, split, TAR, any_split=any_split):
        return TarTable(tars)
    if folders := paired_folders(location, split, any_split=any_split):
        return _list_table((Row(*row) for folder in folders for row in read_paired_folder(folder)), location.word)
    raise ValueError(f"{location.word} holds no parquet file of the split {split}. {WAY_OUT}")


def split_names(location: Location) -> list[str]:
    """Lists the splits that a local source has; `train` alone if nothing in it names a split."""
    if location.kind != "path" or not location.path.is_dir():
        return ["train"]
    kinds = (
        split_files(location, EVERY_SPLIT),
        metadata_tables(location, EVERY_SPLIT),
        split_files(location, EVERY_SPLIT, TAR),
        [folder.root for folder in paired_folders(location, EVERY_SPLIT)],
    )
    paths = next(filter(None, kinds), [])
    named = {split_of(path, dataset_in(location.path)) or "train" for path in paths}
    return [split for split in SPLITS if split in named] or ["train"]


def _list_table(rows: Iterable[Row], word: str) -> ListTable:
    table = ListTable(list(rows))
    if not len(table):
        raise ValueError(f"{word} has no rows. Give a table with at least one.")
    return table


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


class HubTable:
    """Rows of a dataset that `datasets` has laid out on disk."""

    def __init__(self, dataset: Dataset, word: str) -> None:
        self.dataset, self.word = without_decoding(dataset), word

    @property
    def names(self) -> list[str]:
        """The columns."""
        return list(self.dataset.column_names)

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, columns: Sequence[str], first: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Yields all rows, or some, with these columns, if there are such."""
        rows = self.dataset.select_columns([name for name in dict.fromkeys(columns) if name in self.names])
        numbers = range(len(self))[first:stop]
        chosen = rows.select(numbers) if len(numbers) < len(self) else rows
        return (Row(values, f"{self.word} row {number}") for number, values in enumerate(chosen, start=first + 1))

    def row(self, number: int, columns: Sequence[str]) -> Row:
        """Returns one whole row, counted from 0."""
        return Row(self.dataset[number], f"{self.word} row {number + 1}")


def lay_out(
    table: ParquetTable, pictures: Sequence[str], texts: Sequence[str], cache_dir: str | None = None
) -> Dataset:
    """Lays columns of parquet files out on disk, once, so that each row is found by its number.

    Parquet itself would read a whole row group for each row.
    """
    from datasets import Dataset, Features, Image, Value

    features = Features({name: Image(decode=False) for name in pictures} | {name: Value("string") for name in texts})
    inputs = {
        "files": tuple(str(file.resolve()) for file in table.files),
        "pictures": tuple(pictures),
        "texts": tuple(texts),
        "stamps": tuple((file.stat().st_size, file.stat().st_mtime_ns) for file in table.files),
    }
    return Dataset.from_generator(_laid_out_rows, features=features, gen_kwargs=inputs, cache_dir=cache_dir)


def _laid_out_rows(
    files: Sequence[str], pictures: Sequence[str], texts: Sequence[str], stamps: Sequence[object]
) -> Iterator[Values]:
    """Yields what `lay_out` stores; `stamps` distinguish versions of the files."""
    for row in ParquetTable([Path(file) for file in files]).read((*pictures, *texts)):
        by_name = {name: row.picture(name) for name in pictures}
        cells = {name: None if file is None else _as_cell(file) for name, file in by_name.items()}
        yield cells | {name: row.wording(name) for name in texts}


def _as_cell(picture: bytes | Path) -> Values:
    if isinstance(picture, Path):
        return {"bytes": None, "path": str(picture.resolve())}
    return {"bytes": picture, "path": None}


def read_file(location: Location) -> Iterator[Row]:
    """Yields the rows of one .jsonl, .json, .csv or .parquet file, local or at a URL.

    ValueError names the place of an error.

    Of parquet only plain columns are read, without pictures and lists.
    """
    folder = location.path.parent if location.is_local else None
    with open_file(location) as file:
        if location.suffix == PARQUET:
            rows: Iterable[tuple[int, Any]] = enumerate(read_plain_columns(file, location.word), start=1)
        elif location.suffix == ".csv":
            rows = read_csv(file, location.word)
        elif location.suffix == ".json":
            rows = read_json_array(file, location.word)
        else:
            rows = read_json_lines(file, location.word)
        for number, values in rows:
            where = f"{location.word} {'line' if location.suffix == '.jsonl' else 'row'} {number}"
            if not isinstance(values, Mapping):
                raise Unreadable(f"{where} must hold one JSON object, got {type(values).__name__}.")
            yield Row(without_conversation(values), where, folder)


def metadata_tables(location: Location, split: str = "train", *, any_split: bool = False) -> list[Path]:
    """Lists the tables of a split that name a folder's pictures; empty if it is not an image folder."""
    if location.kind != "path" or not location.path.is_dir():
        return []
    root = dataset_in(location.path)
    tables = [path for path in visible_files(root) if path.name in METADATA_NAMES]
    return of_split(tables, split, root, any_split=any_split)


def paired_folders(location: Location, split: str = "train", *, any_split: bool = False) -> list[PairedFolder]:
    """Lists the folders of a split in which pictures are paired by their names; empty if there are none."""
    if location.kind != "path" or not location.path.is_dir():
        return []
    folders = {each.root: each for each in find_paired_folders(dataset_in(location.path))}
    chosen = of_split(list(folders), split, dataset_in(location.path), any_split=any_split)
    return [folders[root] for root in chosen]


def read_metadata(table: Path) -> Iterator[Row]:
    """Yields the rows of an image folder's table: `file_name` as `image`, `<column>_file_name` as the column."""
    for row in read_file(Location(str(table), "path")):
        names = ("image" if name == FILE_NAME else name.removesuffix(f"_{FILE_NAME}") for name in row.values)
        yield Row(dict(zip(names, row.values.values(), strict=True)), row.where, row.folder)


def load_dataset(
    location: Location, *, split: str = "train", streaming: bool = False, way_out: str = WAY_OUT, **options: Any
) -> Any:
    """Loads a hub dataset, or a parquet file at a URL. ValueError of one line, with the way out, if that fails."""
    import datasets

    options |= {"split": split, "streaming": streaming}
    with _loading(location.word, way_out):
        if location.kind == "url":
            return datasets.load_dataset("parquet", data_files={split: location.word}, **options)
        return datasets.load_dataset(location.word, **options)


def stream_rows(
    location: Location, *, limit: int | None = None, way_out: str = WAY_OUT, **options: Any
) -> Iterator[Values]:
    """Yields the first rows of a hub dataset as they arrive. ValueError as in `load_dataset`."""
    rows: IterableDataset = load_dataset(location, streaming=True, way_out=way_out, **options)
    with _loading(location.word, way_out):
        yield from islice(without_decoding(rows), limit)


@contextmanager
def _loading(word: str, way_out: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub's client raises many kinds
        raise ValueError(f"could not load {word}: {first_line(error).rstrip('.')}. {way_out}") from error


def without_decoding(dataset: Any) -> Any:
    """Returns a dataset whose pictures are not decoded."""
    from datasets import Image

    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
    return dataset
