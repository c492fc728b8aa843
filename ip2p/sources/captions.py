"""The rows of what captions come from: text, jsonl, csv and parquet files, local or at a URL, and hub datasets.

A row is a line of text or a mapping of columns; nothing is judged here. Large sources are read as a stream.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

from ip2p.config import PromptsConfig
from ip2p.console import first_line

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")
CAPTION_COLUMNS = ("caption", "text", "TEXT", "prompt", "original_prompt")
"""Looked for, in this order, where no column is named."""
WAY_OUT = (
    "Set prompts.captions to a text file with one caption a line, a .csv or .parquet file, a hub dataset (owner/name) "
    "or a .jsonl file of triplets."
)

Row = str | Mapping[str, Any]


def is_remote(source: str) -> bool:
    """Whether captions come from elsewhere: a URL or a hub dataset."""
    return "://" in source or is_hub_id(source)


def is_hub_id(source: str) -> bool:
    """`owner/name` that is no file here."""
    plain = source.count("/") == 1 and not source.startswith((".", "/", "~")) and " " not in source
    return plain and "://" not in source and suffix_of(source) not in SUFFIXES and not Path(source).exists()


def suffix_of(source: str) -> str:
    """`.txt` of `captions.TXT`."""
    return Path(source.partition("?")[0]).suffix.lower()


def read_rows(config: PromptsConfig) -> Iterator[tuple[int, Row]]:
    """Numbered rows, from 1. ValueError where the source cannot be read, with the way out."""
    source = config.captions
    if is_hub_id(source):
        yield from enumerate(_read_hub(config), start=1)
        return
    readers: dict[str, Callable[[IO[bytes]], Iterator[tuple[int, Row]]]] = {
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    try:
        with _open(source) as file:
            yield from readers.get(suffix_of(source), _read_lines)(file)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"captions file {source} is not UTF-8 text ({error.reason} at byte {error.start}). {WAY_OUT}"
        ) from None


@contextmanager
def _open(source: str) -> Iterator[IO[bytes]]:
    if "://" not in source:
        with Path(source).expanduser().open("rb") as file:
            yield file
        return
    import fsspec

    try:
        opened = fsspec.open(source, "rb").open()
    except (ImportError, ValueError, OSError) as error:
        raise ValueError(f"captions {source} cannot be opened: {error}. {WAY_OUT}") from error
    with closing(opened):
        yield opened


def _read_lines(file: IO[bytes]) -> Iterator[tuple[int, Row]]:
    """Lines that are not blank; `\\n` alone ends one."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
    yield from ((number, line) for number, line in enumerate(text, start=1) if line.strip())
    text.detach()


def _read_csv(file: IO[bytes]) -> Iterator[tuple[int, Row]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    yield from enumerate(csv.DictReader(text), start=1)
    text.detach()


def _read_parquet(file: IO[bytes]) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        names = [field.name for field in table.schema_arrow if not pa.types.is_nested(field.type)]
        rows = (row for batch in table.iter_batches(columns=names) for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
    except pa.ArrowInvalid as error:
        raise ValueError(f"captions file is no parquet file: {error}. {WAY_OUT}") from error


def _read_hub(config: PromptsConfig) -> Iterator[Row]:
    if config.num_captions is None:
        raise ValueError(
            f"prompts.num_captions is not set for the hub dataset {config.captions}. Say how many to take."
        )
    from datasets import load_dataset

    options = {"split": config.captions_split, "revision": config.captions_revision, "streaming": True}
    try:
        yield from load_dataset(config.captions, **options)
    except (OSError, ValueError) as error:
        first = first_line(error)
        raise ValueError(f"could not read the captions of {config.captions}: {first}. {WAY_OUT}") from error


def caption_of(row: Row, column: str | None, where: str) -> str:
    """The caption of a row; empty where its cell is. ValueError names the columns there are."""
    if isinstance(row, str):
        if column is None:
            return row
        row = json.loads(row)
    if not isinstance(row, Mapping):
        raise ValueError(f"a line of {where} holds one JSON object, got {type(row).__name__}")
    named = column or next((name for name in CAPTION_COLUMNS if name in row), None)
    if named is None or named not in row:
        raise ValueError(
            f"{where} has no column {column or 'named ' + ' or '.join(CAPTION_COLUMNS)}; it has "
            f"{', '.join(map(str, row)) or 'none'}. Set prompts.captions_column to one of them."
        )
    value = row[named]
    return value if isinstance(value, str) else ""
