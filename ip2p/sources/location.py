"""Decides what the word that a user gives for data names: a path, a pattern, a URL or a dataset on the hub.

A word that exists on this machine is a path, whatever it looks like; an `owner/name` that does not is a hub id. File
and folder names may name a split, as on the hub.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["path", "glob", "url", "hub"]

WAY_OUT = (
    "Give a folder of parquet files or of pictures with a metadata.jsonl, a .parquet, .jsonl or .csv file, a pattern "
    "or a hub id (owner/name)."
)
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
PARQUET, TAR = ".parquet", ".tar"
TABLE_SUFFIXES = (".jsonl", ".csv", ".json")
"""Tables whose rows name picture files; a .json file is one array."""
DATA_SUFFIXES = (PARQUET, TAR, *TABLE_SUFFIXES, ".txt")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "metadata.json")
"""Tables that make a folder of pictures a dataset."""
SPLITS = {
    "train": ("train", "training", "trainset"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "testset", "eval", "evaluation"),
}
"""Words that name a split in a file's or folder's name."""
EVERY_SPLIT = "all"
"""Names all rows, whatever their split, as on the hub."""
_ALIASES = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
_SPLIT_WORD = re.compile(
    rf"(?<![^\W_])({'|'.join(sorted(_ALIASES, key=len, reverse=True))})(?![^\W\d_])", re.IGNORECASE
)
UNSEEN_FOLDERS = ("__MACOSX",)


@dataclass(frozen=True, slots=True)
class Location:
    """A word that names data, and what kind of place it names."""

    word: str
    kind: Kind

    @property
    def path(self) -> Path:
        """The word as a path or pattern on this machine."""
        return Path(os.path.expanduser(self.word))

    @property
    def is_local(self) -> bool:
        """True for a path or a pattern."""
        return self.kind in ("path", "glob")

    @property
    def suffix(self) -> str:
        """`.txt` for `captions.TXT` and for `https://x.y/captions.txt?download=1`."""
        return Path(self.word.partition("?")[0] if self.kind == "url" else self.word).suffix.lower()

    @property
    def name(self) -> str:
        """What to call the data in tables and cards: a hub id as it is, else the last part."""
        return self.word if self.kind == "hub" else Path(self.word).name


def locate(word: str | Path, *, what: str = "", way_out: str = WAY_OUT) -> Location:
    """Decides what a word names. ValueError with the way out if it names nothing.

    `what` stands before the word in the error, such as "captions file".
    """
    text = str(word)
    path = Path(os.path.expanduser(text))
    if not text:
        raise ValueError(f"no {what or 'data'} given. {way_out}")
    if "://" in text:
        return Location(text, "url")
    if _exists(path):
        return Location(text, "path")
    if glob.has_magic(text):
        return Location(text, "glob")
    if HUB_ID.fullmatch(text) and path.suffix.lower() not in DATA_SUFFIXES:
        return Location(text, "hub")
    raise ValueError(f"{f'{what} ' * bool(what)}{text} does not exist. {way_out}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long for a file name
        return False


def dataset_in(folder: Path) -> Path:
    """Returns the dataset folder of a run folder, and any other folder as it is."""
    return folder / "dataset" if (folder / "dataset").is_dir() else folder


def data_files(location: Location, suffix: str = PARQUET) -> list[Path]:
    """Lists the parquet files that a location names, in order; none for a URL, a hub id or another kind of table.

    `suffix` is that of another kind of file with rows. A single file of an unknown suffix counts as parquet.
    """
    if location.kind == "glob":
        paths = sorted(map(Path, glob.glob(str(location.path), recursive=True)))
        return [path for path in paths if path.suffix.lower() == suffix and path.is_file()]
    if location.kind != "path":
        return []
    if location.path.is_file():
        file_suffix = location.suffix if location.suffix in DATA_SUFFIXES else PARQUET
        return [location.path] if file_suffix == suffix else []
    files = visible_files(dataset_in(location.path))
    return [path for path in files if path.suffix.lower() == suffix and path.name not in METADATA_NAMES]


def split_files(location: Location, split: str, suffix: str = PARQUET, *, any_split: bool = False) -> list[Path]:
    """Lists the parquet files of a split; the files of a pattern, and a single file, are taken for any split.

    `suffix` as in `data_files`.
    """
    files = data_files(location, suffix)
    if location.kind == "path" and location.path.is_dir():
        return of_split(files, split, dataset_in(location.path), any_split=any_split)
    return files


def of_split(files: list[Path], split: str, folder: Path, *, any_split: bool = False) -> list[Path]:
    """Selects the files of a split by their names and folders below `folder`; unnamed ones are for training.

    With `any_split`, all files are taken if none names a split; `EVERY_SPLIT` takes them in any case.
    """
    split = _ALIASES.get(split.lower(), split)
    if split == EVERY_SPLIT:
        return files
    splits = {path: split_of(path, folder, split) for path in files}
    if any_split and not any(splits.values()):
        return files
    named = [path for path in files if splits[path] == split]
    return named or [path for path in files if split == "train" and not splits[path]]


def held_out_files(location: Location) -> list[Path]:
    """Lists a folder's parquet files of the test and validation splits; none for anything but a folder."""
    if location.kind != "path" or not location.path.is_dir():
        return []
    folder = dataset_in(location.path)
    return [path for path in data_files(location) if split_of(path, folder) in ("test", "validation")]


def split_of(path: Path, folder: Path, custom: str = "") -> str | None:
    """Returns the split named by a file, or else by the nearest folder below `folder`; None if there is none.

    `custom` is a split of another name, such as `extra`, which counts if a name begins with it.
    """
    below = path.relative_to(folder)
    for name in (below.stem, *(parent.name for parent in below.parents if parent.name)):
        if custom and custom not in SPLITS and re.match(rf"{re.escape(custom)}(?![^\W\d_])", name):
            return custom
        if match := _SPLIT_WORD.search(name):
            return _ALIASES[match[1].lower()]
    return None


def visible_files(folder: Path) -> list[Path]:
    """Lists the files below a folder in order, following links, without hidden ones and those that macOS adds."""
    return sorted(_walk(folder, set()))


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:  # a link back to a parent
        return
    seen.add(real)
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in UNSEEN_FOLDERS:
            continue
        if path.is_dir():
            yield from _walk(path, seen)
        elif path.is_file():
            yield path
