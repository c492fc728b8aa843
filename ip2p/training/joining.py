"""Joins the rows of several sources, one after another, whatever their columns are called."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ip2p.config import TrainingConfig, TrainingJob, fingerprint
from ip2p.sources.columns import guess_columns
from ip2p.sources.hub import stream_rows
from ip2p.sources.location import locate
from ip2p.sources.rows import open_table as open_source
from ip2p.sources.tables import ParquetTable
from ip2p.training.data import (
    Columns,
    RawPair,
    SourceRows,
    TableRows,
    check_local_data,
    find_files,
    open_rows,
    open_table,
)


@dataclass(frozen=True, slots=True)
class DataSource:
    """One of the sources of a training, with its columns in the config."""

    data: str
    config: TrainingConfig


def data_sources(data: str, config: TrainingConfig) -> list[DataSource]:
    """Lists a training's data, and what it is told to train on beside them."""
    alone = replace(config, more_data=(), data_weights=())
    return [DataSource(data, alone), *(DataSource(each, with_columns(each, alone)) for each in config.more_data)]


def check_sources(data: str, config: TrainingConfig) -> None:
    """Requires rows and columns of each source that is on this machine. ValueError as in `open_rows`."""
    for source in data_sources(data, config):
        check_local_data(source.data, source.config)


def with_columns(data: str, config: TrainingConfig) -> TrainingConfig:
    """Returns a config with the columns of a further source: the config's own, or those of the known schema that fits.

    If neither is there, opening the source says which column is missing.
    """
    names = _columns_in(data)
    if all(name in names for name in Columns.of(replace(config, mask_column=None, region_weight=None)).names):
        return config
    try:
        columns = guess_columns(names)
    except ValueError:
        return config
    balance = columns.get(config.balance_column or "", config.balance_column)
    return replace(
        config,
        original_image_column=columns["original_image"],
        edited_image_column=columns["edited_image"],
        edit_prompt_column=columns["edit_prompt"],
        balance_column=balance,
    )


def _columns_in(data: str) -> list[str]:
    if files := find_files(data):
        return ParquetTable(files[:1]).names
    location = locate(data)
    if location.kind == "hub":
        return list(next(stream_rows(location, limit=1, split="train"), {}))
    return list(open_source(location).names)


class JoinedRows:
    """The rows of several sources in order, and by number if each source has them so."""

    def __init__(self, parts: Sequence[SourceRows], sources: Sequence[DataSource]) -> None:
        self.parts, self.sources = parts, sources
        self.starts = [0, *itertools.accumulate(len(part) for part in parts)]
        self.fingerprint = fingerprint(*(part.fingerprint for part in parts))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, number: int) -> RawPair:
        source = int(np.searchsorted(self.starts, number, side="right")) - 1
        table: Any = self.parts[source]
        pair: RawPair = table[number - self.starts[source]]
        return pair

    @property
    def source_numbers(self) -> NDArray[np.int64]:
        """The source of each row."""
        return np.repeat(np.arange(len(self.parts)), np.diff(self.starts))

    def prompts(self) -> list[str | None]:
        """Reads the instructions of all rows."""
        return [prompt for part in self.parts for prompt in part.prompts()]

    def values(self, column: str) -> list[object]:
        """Reads a column of all rows; the column to balance by has each source's own name."""
        values: list[object] = []
        for part, source in zip(self.parts, self.sources, strict=True):
            own = source.config.balance_column or column
            values += part.values(own if column == self.sources[0].config.balance_column else column)
        return values

    def read(self) -> Iterator[RawPair]:
        """Yields all rows."""
        return itertools.chain.from_iterable(part.read() for part in self.parts)


def open_all_rows(job: TrainingJob) -> SourceRows | JoinedRows:
    """Opens the rows of all of a training's data. ValueError as in `open_rows`."""
    sources = data_sources(job.data, job)
    if len(sources) == 1:
        return open_rows(job.data, job)
    return JoinedRows([open_rows(source.data, source.config) for source in sources], sources)


def open_all_tables(job: TrainingJob) -> TableRows | JoinedRows:
    """Opens the same by number."""
    sources = data_sources(job.data, job)
    if len(sources) == 1:
        return open_table(job.data, job)
    return JoinedRows([open_table(source.data, source.config) for source in sources], sources)
