"""What a layout declares, and how samples become folders of pictures with a table that lists them.

Every exported split has a `metadata.jsonl` with all columns, beside what the trainer reads, so that an import of the
folder brings back the same pairs with all of their texts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ip2p.images import encode_png, format_of, open_upright
from ip2p.sources.rows import FILE_NAME

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
TABLE = "metadata.jsonl"
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """A pair to write."""

    number: int
    """Its place in the split, from 0."""
    pictures: Mapping[str, bytes]
    """Picture files by our columns: the two sides and, if there are such, the second reference and the mask."""
    texts: Mapping[str, str]
    """Texts by our columns; `edit_prompt` is never empty."""
    further: Mapping[str, Any]
    """Numbers and texts of further columns, such as seeds and scores."""

    @property
    def stem(self) -> str:
        """Names its files, without suffix."""
        return f"{self.number:08d}"

    @property
    def values(self) -> Values:
        """All that it has beside pictures."""
        return {**self.texts, **self.further}


@dataclass(frozen=True, slots=True)
class Export:
    """What was written, for the trainer's config file."""

    folder: Path
    """Where the config file is written."""
    final: Path
    """Where the folder will lie: the absolute path that config files name."""
    counts: Mapping[str, int]
    """Pairs by split."""
    columns: frozenset[str]
    """The columns of pictures that at least one pair has."""

    @property
    def held_out(self) -> str:
        """Names a split that is not for training; empty if there is none."""
        return next((split for split in self.counts if split != "train"), "")


def num_listed(folder: Path) -> int:
    """Counts the samples in a split's table, which has a line for each that is written; cuts off half a line."""
    table = folder / TABLE
    if not table.exists():
        return 0
    with table.open("rb+") as file:
        num = 0
        for line in file:
            if not line.endswith(b"\n"):
                file.seek(-len(line), os.SEEK_END)
                file.truncate()
                break
            num += 1
    return num


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a trainer wants pairs on disk."""

    name: str
    """Its value of `--to`."""
    trainer: str
    """Who reads it."""
    start: str
    """The line that starts the trainer or opens the data; FOLDER stands for the exported folder."""
    write_split: Callable[[Iterable[Sample], Path], None]
    """Writes the samples of a split below a folder, one after another, behind those that are whole there."""
    num_whole: Callable[[Path], int] = num_listed
    """Counts the first samples of a split that are whole after a kill."""
    write_config: Callable[[Export], None] = lambda export: None
    """Writes the trainer's own config file, if it has one."""


Describe = Callable[[Sample, Mapping[str, str]], Values]
"""Makes a line of the table from a sample and the paths of its pictures by column."""


def describe_image_folder(sample: Sample, paths: Mapping[str, str]) -> Values:
    """Returns a line of an image folder's table: `<column>_file_name` for pictures, and all other values."""
    return sample.values | {f"{column}_{FILE_NAME}": path for column, path in paths.items()}


def write_folder(
    samples: Iterable[Sample],
    folder: Path,
    places: Mapping[str, str],
    *,
    text: str = "",
    one_line: bool = False,
    one_suffix: bool = False,
    describe: Describe = describe_image_folder,
) -> None:
    """Writes pictures, texts and the table of a split; a sample's line is written when all else of it is.

    `places` are the paths of pictures by column, with `{stem}` and `{suffix}`; a fixed `.png` re-encodes what is not
    PNG, without loss. `text` is the path of the instruction; `one_line` writes its line breaks as spaces. `one_suffix`
    re-encodes the pictures of a pair that differ in format.
    """
    (folder / (text or TABLE)).parent.mkdir(parents=True, exist_ok=True)
    with (folder / TABLE).open("a", encoding="utf-8", newline="\n", buffering=1) as table:
        for sample in samples:
            paths = _write_pictures(sample, folder, places, one_suffix=one_suffix)
            if text:
                prompt = sample.texts["edit_prompt"]
                words = " ".join(prompt.splitlines()) if one_line else prompt
                (folder / text.format(stem=sample.stem)).write_bytes(words.encode())
            table.write(f"{json.dumps(describe(sample, paths), ensure_ascii=False)}\n")


def _write_pictures(sample: Sample, folder: Path, places: Mapping[str, str], *, one_suffix: bool) -> dict[str, str]:
    """Writes the pictures of a sample; returns their paths by column."""
    is_mixed = one_suffix and len({format_of(content) for content in sample.pictures.values()}) > 1
    paths = {}
    for column, content in sample.pictures.items():
        if is_mixed or places[column].endswith(SUFFIXES["png"]):
            content = as_png(content)
        path = places[column].format(stem=sample.stem, suffix=SUFFIXES[format_of(content)])
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        paths[column] = path
    return paths


def as_png(content: bytes) -> bytes:
    """Returns a picture file as PNG, unchanged if it is one."""
    return content if format_of(content) == "png" else encode_png(open_upright(content))
