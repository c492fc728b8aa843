"""Rows of data, whatever holds them: parquet, JSON lines, csv, image folders, or the hub.

A row knows its place, so that errors name file and number, and the folder that its paths are relative to. Nothing is
decoded and nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ip2p.sources.conversations import without_conversation
from ip2p.sources.files import (
    Unreadable,
    open_file,
    read_csv,
    read_json_array,
    read_json_lines,
    read_plain_columns,
)
from ip2p.sources.folders import PairedFolder, find_paired_folders, read_paired_folder
from ip2p.sources.hub import HubTable, load_dataset
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
from ip2p.sources.row import Row, Table
from ip2p.sources.tables import ListTable, ParquetTable, TarTable

FILE_NAME = "file_name"
"""The column of an image folder that names the picture; `<column>_file_name` names that of another column."""


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
