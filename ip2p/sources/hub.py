"""Rows of the `datasets` library: of the hub, of parquet at a URL, or laid out on disk to be found by number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ip2p.console import first_line
from ip2p.sources.files import Values
from ip2p.sources.location import WAY_OUT, Location
from ip2p.sources.row import Row
from ip2p.sources.tables import ParquetTable

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


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
