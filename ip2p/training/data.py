"""Reads the pairs: from a folder of parquet files or of pictures, a table, or a dataset on the hub. No torch here.

The latent cache reads rows in order, once; a training without one reads them by number.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ip2p.config import TrainingConfig, fingerprint, to_dict
from ip2p.config.fields import RESULT_FREE, WEIGHTS_FREE, names_with
from ip2p.images import check_shapes, fit_picture, fitted_size, open_picture, read_size
from ip2p.sources.content import Source, digest_of, later_contents, loaded_files
from ip2p.sources.location import TABLE_SUFFIXES, WAY_OUT, Location, held_out_files, locate, split_files
from ip2p.sources.rows import (
    HubTable,
    ParquetTable,
    Row,
    Table,
    lay_out,
    load_dataset,
    metadata_tables,
    paired_folders,
    without_decoding,
)
from ip2p.sources.rows import open_table as open_source

if TYPE_CHECKING:
    from datasets import IterableDataset

logger = logging.getLogger(__name__)

HASHED_BYTES = 1 << 30
"""Files up to this size in total are compared by content, larger ones by size and time."""


@dataclass(frozen=True, slots=True)
class RawPair:
    """A row as it is stored: two picture files, as content or path, and the instruction."""

    original: bytes | Path | None
    edited: bytes | Path | None
    edit_prompt: str | None


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


def open_rows(data: str, config: TrainingConfig) -> Rows:
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
    """Opens the training rows by number; parquet files are laid out for that on disk, once."""
    location, files = _located(data), find_files(data)
    if location.is_local and not files:
        return _listed_rows(location, config)
    if files:
        original, edited, prompt = _columns_of(config)
        pictures = list(dict.fromkeys((original, edited)))
        dataset = lay_out(_parquet(files, config), pictures, [prompt], _cache_dir(config))
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
    columns = _columns_of(config)
    pictures = [row.picture(name) for row in table.read(columns) for name in columns[:2]]
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in pictures if isinstance(path, Path)]
    prompts = [row.text(columns[2]) for row in table.read(columns[2:])]
    return TableRows(table, config, location.word, fingerprint("listed", stamps, prompts))


def _load_remote(location: Location, config: TrainingConfig, **options: Any) -> Any:
    named = {"name": getattr(config, "dataset_config_name", None), "cache_dir": _cache_dir(config)}
    options |= {name: value for name, value in named.items() if value is not None}
    return load_dataset(location, split="train", way_out=WAY_OUT, **options)


def _cache_dir(config: TrainingConfig) -> str | None:
    return getattr(config, "cache_dir", None)


def _dataset_rows(dataset: Any, config: TrainingConfig, name: str) -> TableRows:
    columns = _columns_of(config)
    check_columns(config, dataset.column_names, name)
    num_rows = min(len(dataset), config.max_train_samples or len(dataset))
    table = HubTable(dataset.select_columns(list(dict.fromkeys(columns))).select(range(num_rows)), name)
    return TableRows(table, config, name, table.dataset._fingerprint)


class TableRows:
    """Rows of a table, by number or in order."""

    def __init__(self, table: Table, config: TrainingConfig, name: str, identity: object) -> None:
        self.columns = _columns_of(config)
        check_columns(config, table.names, name)
        if not len(table):
            raise ValueError(f"{name} has no rows. Give a dataset with at least one pair.")
        self.table = table
        self.num_rows = min(len(table), config.max_train_samples or len(table))
        self.fingerprint = fingerprint(name, identity)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, number: int) -> RawPair:
        return _as_pair(self.table.row(number, self.columns), self.columns)

    def prompts(self) -> list[str | None]:
        """Reads the instructions of all rows."""
        rows = itertools.islice(self.table.read(self.columns[2:]), self.num_rows)
        return [row.wording(self.columns[2]) for row in rows]

    def values(self, column: str) -> list[object]:
        """Reads a column of all rows."""
        return [row.values.get(column) for row in itertools.islice(self.table.read([column]), self.num_rows)]

    def read(self) -> Iterator[RawPair]:
        """Yields all rows; memory holds one batch."""
        rows = itertools.islice(self.table.read(self.columns), self.num_rows)
        return (_as_pair(row, self.columns) for row in rows)


class ParquetRows(TableRows):
    """Rows of local parquet files."""

    def __init__(self, files: list[Path], config: TrainingConfig) -> None:
        super().__init__(_parquet(files, config), config, str(files[0].parent), None)
        self.fingerprint = fingerprint(fingerprint_files(files), self.columns, self.num_rows)


def _parquet(files: list[Path], config: TrainingConfig) -> ParquetTable:
    """Opens parquet files, of which each must have the columns."""
    table = ParquetTable(files)
    for file, names in table.names_by_file.items():
        check_columns(config, names, str(file))
    return table


class StreamedRows:
    """Rows of a hub dataset, read one after another; nothing is downloaded before."""

    def __init__(self, dataset: IterableDataset, config: TrainingConfig, name: str) -> None:
        self.columns = _columns_of(config)
        columns = dataset.column_names or list(next(iter(dataset)))
        check_columns(config, columns, name)
        self.all_columns = dataset
        self.dataset = without_decoding(dataset.select_columns(list(dict.fromkeys(self.columns))))
        self.limit, self.name = config.max_train_samples, name
        self._prompts: list[str | None] | None = None
        self.fingerprint = fingerprint(name, columns, self.limit, "streaming")

    def __len__(self) -> int:
        return len(self.prompts())

    def prompts(self) -> list[str | None]:
        """Reads the instructions of all rows in a separate pass."""
        if self._prompts is None:
            rows = itertools.islice(self.dataset.select_columns(self.columns[2:]), self.limit)
            self._prompts = [Row(row, self.name).wording(self.columns[2]) for row in rows]
        return self._prompts

    def values(self, column: str) -> list[object]:
        """Reads a column of all rows in a separate pass."""
        rows = itertools.islice(self.all_columns.select_columns([column]), self.limit)
        return [row[column] for row in rows]

    def read(self) -> Iterator[RawPair]:
        """Yields all rows."""
        return (_as_pair(Row(row, self.name), self.columns) for row in itertools.islice(self.dataset, self.limit))


def check_columns(config: TrainingConfig, columns: Sequence[str], where: str) -> None:
    """Raises a ValueError, which lists the columns, if one of the config is missing."""
    balance = ["balance_column"] if config.balance_column else []
    for knob in ("original_image_column", "edited_image_column", "edit_prompt_column", *balance):
        name = getattr(config, knob)
        if name not in columns:
            present = ", ".join(columns) or "none"
            raise ValueError(f"{where} has no column {name!r}; its columns are: {present}. Set training.{knob}.")


def _columns_of(config: TrainingConfig) -> list[str]:
    return [config.original_image_column, config.edited_image_column, config.edit_prompt_column]


def _as_pair(row: Row, columns: Sequence[str]) -> RawPair:
    original, edited, prompt = columns
    return RawPair(row.picture(original), row.picture(edited), row.wording(prompt))


def fingerprint_files(paths: list[Path]) -> str:
    """Hashes a set of files: by content, or by size and time if they are large."""
    sizes = [path.stat().st_size for path in paths]
    if sum(sizes) <= HASHED_BYTES:
        return fingerprint([path.name for path in paths], [digest_of(path) for path in paths])
    return fingerprint([(path.name, size, path.stat().st_mtime_ns) for path, size in zip(paths, sizes, strict=True)])


def model_fingerprint(config: TrainingConfig) -> str:
    """Hashes a base model: by its files if they are local, else by name and revision."""
    folder = Path(config.pretrained_model_name_or_path).expanduser()
    if not folder.is_dir():
        return fingerprint(config.pretrained_model_name_or_path, config.revision, config.variant)
    return fingerprint_files(loaded_files(folder))


def models_of(config: TrainingConfig) -> list[Source]:
    """Returns the models whose content `model_fingerprint` leaves out: a base on the hub and a separate autoencoder."""
    base, vae = config.pretrained_model_name_or_path, config.pretrained_vae_model_name_or_path
    models = [Source("training.pretrained_vae_model_name_or_path", vae)] if vae else []
    if not Path(base).expanduser().is_dir():
        models.append(Source("training.pretrained_model_name_or_path", base, config.revision))
    return models


def sources_of_training(config: TrainingConfig, data: str) -> list[Source]:
    """Returns the models and the data that `training_fingerprint` knows by name."""
    return models_of(config) + ([] if find_files(data) else [Source("data", data, is_data=True)])


def training_fingerprint(training: TrainingConfig, data: str, output: Path | None = None) -> str:
    """Hashes what decides the trained weights: settings, the base model's content and the data's.

    What is known by name enters if its content has changed since it was noted in the folder `output`.
    """
    return fingerprint(resume_fingerprint(training, data, output), training.max_train_steps)


def resume_fingerprint(training: TrainingConfig, data: str, output: Path | None = None) -> str:
    """Hashes the same for a checkpoint: under a constant learning rate a training may be made longer."""
    free = names_with(TrainingConfig, RESULT_FREE, WEIGHTS_FREE)
    if training.lr_scheduler.startswith("constant"):
        free |= {"max_train_steps"}
    names = {field.name for field in fields(TrainingConfig)} - free
    knobs = {name: value for name, value in to_dict(training).items() if name in names}
    files = find_files(data)
    later = later_contents(output, sources_of_training(training, data)) if output else []
    return fingerprint(knobs, model_fingerprint(training), fingerprint_files(files) if files else data, *later)


@dataclass(frozen=True, slots=True)
class DecodedPair:
    """Two images under one geometry."""

    pixels: NDArray[np.uint8]
    """(2, resolution, resolution, 3): original and edited."""
    size: tuple[int, int]
    """(height, width) before."""
    top_left: tuple[int, int]
    """Where the crop begins in the resized image."""

    def mirrored(self) -> DecodedPair:
        """Mirrors the pair; the crop is counted from the mirrored image's left."""
        resolution = self.pixels.shape[1]
        rest = fitted_size(self.size, resolution)[1] - resolution
        top, left = self.top_left
        return DecodedPair(self.pixels[..., ::-1, :].copy(), self.size, (top, rest - left))

    def time_ids(self) -> tuple[int, ...]:
        """Returns what Stable Diffusion XL is conditioned on: original size, crop and target size."""
        resolution = self.pixels.shape[1]
        return (*self.size, *self.top_left, resolution, resolution)


def decode_pair(pair: RawPair, resolution: int, crop: tuple[float, float] = (0.5, 0.5)) -> DecodedPair:
    """Resizes the short side and crops square, at shares `crop` of the rest from top and left.

    ValueError if the row cannot be used.
    """
    if pair.edit_prompt is None:
        raise ValueError("no instruction")
    if not pair.original or not pair.edited:
        raise ValueError("no image")
    original, edited = open_picture(pair.original), open_picture(pair.edited)
    check_shapes(original.size, edited.size)
    size = original.height, original.width
    sides = fitted_size(size, resolution)
    top, left = (round((side - resolution) * share) for side, share in zip(sides, crop, strict=True))
    fitted = (fit_picture(image, (resolution, resolution), (crop[1], crop[0])) for image in (original, edited))
    pixels = np.stack([np.asarray(image, dtype=np.uint8) for image in fitted])
    return DecodedPair(pixels, size, (top, left))


def is_square(picture: bytes | Path | None) -> bool:
    """Reads the header alone; an unreadable picture counts as square, since it is dropped later."""
    try:
        width, height = read_size(picture or b"")
    except ValueError:
        return True
    return width == height
