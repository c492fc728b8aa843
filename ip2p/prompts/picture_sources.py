"""Where pictures come from: files, with captions in .txt files beside them, rows of a table, or code that draws them.

Only places and captions are read here; a picture is read when its shard is written.
"""

from __future__ import annotations

import functools
import glob
import importlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from ip2p.config import CleaningConfig, PromptsConfig
from ip2p.images import IMAGE_SUFFIXES, Array, Picture
from ip2p.prompts.captions import Captions, PictureEntry, clean_caption
from ip2p.records import content_hash
from ip2p.sources.columns import CAPTION_COLUMNS, PICTURE_COLUMNS
from ip2p.sources.content import hub_commit, version_of
from ip2p.sources.location import Location, data_files, locate, visible_files
from ip2p.sources.row import Table
from ip2p.sources.rows import metadata_tables, open_table

logger = logging.getLogger(__name__)

WAY_OUT = (
    "Set prompts.pictures to a folder of pictures, a .parquet, .csv or .jsonl table with a picture column, a pattern "
    "or a hub dataset (owner/name)."
)


SEEING = ("server", "chat")
"""Backends of prompts that show a picture without a caption to their model."""


@dataclass(frozen=True)
class Files:
    """Picture files."""

    paths: Sequence[Path]

    def captions(self) -> Iterator[str]:
        """Yields each picture's caption; empty if there is no text beside it."""
        for path in self.paths:
            text = path.with_suffix(".txt")
            yield text.read_text(encoding="utf-8", errors="replace") if text.is_file() else ""

    def versions(self) -> Iterator[str]:
        """Yields a hash of each picture's place, size and time."""
        return (version_of([path]) for path in self.paths)

    def read(self, number: int) -> bytes | Path | None:
        """Returns one picture."""
        return self.paths[number]


@dataclass(frozen=True)
class Rows:
    """The rows of a table."""

    table: Table
    picture: str
    caption: str | None
    version: str

    def captions(self) -> Iterator[str]:
        """Yields each row's caption; empty if it has none."""
        if self.caption is None:
            return iter([""] * len(self.table))
        return (row.text(self.caption) for row in self.table.read([self.caption]))

    def versions(self) -> Iterator[str]:
        """Yields a hash of each row's place and of the table's version."""
        return (content_hash(self.version, number) for number in range(len(self.table)))

    def read(self, number: int) -> bytes | Path | None:
        """Returns the picture of one row; None if it has none."""
        return self.table.row(number, [self.picture]).picture(self.picture)


class Artist(Protocol):
    """Draws pictures with captions; `prompts.pictures` names its class as `module:Class`."""

    def caption(self, number: int) -> str:
        """Returns the caption of a picture, a pure function of its number."""
        ...

    def picture(self, number: int) -> Array:
        """Returns the picture, (H, W, 3) uint8."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Pictures that are drawn when they are needed."""

    artist: Artist
    name: str
    num: int

    def captions(self) -> Iterator[str]:
        """Yields each picture's caption."""
        return (self.artist.caption(number) for number in range(self.num))

    def versions(self) -> Iterator[str]:
        """Yields a hash of the artist's name and each picture's number."""
        return (content_hash(self.name, number) for number in range(self.num))

    def read(self, number: int) -> Image.Image:
        """Draws one picture."""
        return Image.fromarray(self.artist.picture(number))


def read_picture_entries(config: PromptsConfig) -> Captions:
    """Reads the places and captions of the pictures, and counts those that cannot be used.

    ValueError if there are none.
    """
    shows = config.backend in SEEING
    captions = _read_version(*_source_key(config), config.cleaning, shows)
    if not captions.entries:
        left_out = ", ".join(f"{num} {reason}" for reason, num in captions.left_out.items())
        why = f" that can be used ({left_out})" if left_out else ""
        needs = f" Pictures without captions need prompts.backend {' or '.join(SEEING)}."
        hint = needs if "no_caption" in captions.left_out else ""
        raise ValueError(f"prompts.pictures {config.pictures} holds no picture{why}. {WAY_OUT}{hint}")
    return Captions(captions.entries[: config.num_captions], captions.left_out)


def read_picture(config: PromptsConfig, entry: PictureEntry) -> Picture | None:
    """Returns the file of a picture, its path or the picture itself; None if its row has none."""
    return _open_version(*_source_key(config)).read(entry.number)


ARTIST = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*:[A-Za-z_]\w*")
SourceKey = tuple[Location | Drawn, str | None, str | None, str, str | None, str]


def _source_key(config: PromptsConfig) -> SourceKey:
    """Returns what a source is opened with, and its version: local files may change during a process."""
    if ARTIST.fullmatch(config.pictures):
        return _drawn(config.pictures, config.num_captions), None, None, "", None, ""
    location = locate(config.pictures, what="prompts.pictures", way_out=WAY_OUT)
    revision = config.captions_revision
    if location.is_local:
        version = version_of(_local_files(location))
    else:
        version = hub_commit(location.word, revision, "dataset") or location.word
    return location, config.pictures_column, config.captions_column, config.captions_split, revision, version


@functools.lru_cache(maxsize=4)
def _drawn(name: str, num: int | None) -> Drawn:
    """Imports the class that draws. ValueError if there is none, or if it is not said how many pictures to draw."""
    module, _, kind = name.partition(":")
    try:
        artist: Artist = getattr(importlib.import_module(module), kind)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"prompts.pictures {name} cannot be imported ({error}). {WAY_OUT}") from error
    if num is None:
        raise ValueError(f"prompts.num_captions is not set for {name}, which draws any number. Set how many to draw.")
    return Drawn(artist, name, num)


def _local_files(location: Location) -> list[Path]:
    if location.kind == "glob":
        return sorted(path for name in glob.glob(str(location.path), recursive=True) if (path := Path(name)).is_file())
    return visible_files(location.path) if location.path.is_dir() else [location.path]


@functools.lru_cache(maxsize=2)
def _open_version(
    location: Location | Drawn, picture: str | None, caption: str | None, split: str, revision: str | None, version: str
) -> Files | Rows | Drawn:
    if isinstance(location, Drawn):
        return location
    is_table = location.kind in ("hub", "url") or data_files(location) or metadata_tables(location, any_split=True)
    if not is_table and not (location.path.is_file() and location.suffix in (".csv", ".jsonl")):
        files = _local_files(location)
        return Files([path for path in files if path.suffix.lower() in IMAGE_SUFFIXES])
    table = open_table(location, split=split, revision=revision, any_split=True)
    return Rows(
        table,
        _column_of(table, picture, PICTURE_COLUMNS, location.word) or "",
        _column_of(table, caption, CAPTION_COLUMNS, location.word, is_needed=False),
        version,
    )


def _column_of(
    table: Table, named: str | None, usual: Sequence[str], word: str, *, is_needed: bool = True
) -> str | None:
    """Returns the named column, or the first usual one that there is. ValueError if one that is needed is missing."""
    present = next((name for name in ((named,) if named else usual) if name in table.names), None)
    if present is None and (is_needed or named):
        raise ValueError(
            f"prompts.pictures {word} has no column {named or 'named ' + ' or '.join(usual)}; it has "
            f"{', '.join(table.names) or 'none'}. Set prompts.pictures_column to the one that holds pictures."
        )
    return present


@functools.lru_cache(maxsize=2)
def _read_version(
    location: Location | Drawn,
    picture: str | None,
    caption: str | None,
    split: str,
    revision: str | None,
    version: str,
    cleaning: CleaningConfig,
    shows: bool,
) -> Captions:
    source = _open_version(location, picture, caption, split, revision, version)
    entries, left_out = [], Counter[str]()
    for number, (text, place) in enumerate(zip(source.captions(), source.versions(), strict=True)):
        cleaned, reason = clean_caption(text, cleaning)
        if reason and not (shows and reason == "empty"):
            left_out["no_caption" if reason == "empty" else reason] += 1
            continue
        entries.append(PictureEntry(number, cleaned, place))
    counts = dict(left_out)
    name = location.name if isinstance(location, Drawn) else location.word
    logger.info("%s: %d pictures, left out: %s", name, len(entries), counts or "none")
    return Captions(tuple(entries), counts)
