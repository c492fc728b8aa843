"""Folders without a table, in which pictures are paired by their names, as trainers read them.

Either two folders hold the two sides of a pair under one name, with the instruction as a text file beside the edited
picture, or one folder holds `name.png`, `name-condlabel.png` for the original and `name.txt`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ip2p.sources.files import Unreadable, Values
from ip2p.sources.location import DATA_SUFFIXES

FOLDERS = {
    "edited_image": ("target", "targets", "edited", "edit", "after", "output", "outputs", "images"),
    "original_image": ("control", "controls", "original", "source", "before", "input", "inputs", "reference"),
    "reference_image_2": ("control_2", "control2", "reference_2"),
    "mask_image": ("mask", "masks"),
}
"""Names of folders that hold one column's pictures each; those of the first two columns make a pair."""
SUFFIXES = {"original_image": "-condlabel", "mask_image": "-masklabel"}
"""What is added to the name of the edited picture, if all lie in one folder."""
TEXT = ".txt"


@dataclass(frozen=True, slots=True)
class PairedFolder:
    """A folder of pairs: the folder of each column, or itself if the columns are told by suffixes."""

    root: Path
    columns: dict[str, Path]
    """Empty if all pictures lie in `root`."""


def find_paired_folders(root: Path) -> list[PairedFolder]:
    """Finds folders of pairs in `root` and right below it, in order."""
    below = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    pairs = [_as_pair(folder) for folder in (root, *below)]
    return [pair for pair in pairs if pair is not None]


def _as_pair(folder: Path) -> PairedFolder | None:
    columns = {
        column: next((folder / name for name in names if (folder / name).is_dir()), None)
        for column, names in FOLDERS.items()
    }
    present = {column: path for column, path in columns.items() if path is not None}
    if {"edited_image", "original_image"} <= present.keys():
        return PairedFolder(folder, present)
    pattern = f"*{SUFFIXES['original_image']}.*"
    return PairedFolder(folder, {}) if next(folder.glob(pattern), None) is not None else None


def read_paired_folder(folder: PairedFolder) -> Iterator[tuple[Values, str, Path]]:
    """Yields the pairs in the order of their names: values, place and the folder that paths are relative to."""
    columns = {column: _pictures(path) for column, path in folder.columns.items()} or _by_suffix(folder.root)
    for stem, edited in columns.pop("edited_image").items():
        pictures = {name: str(files[stem]) for name, files in columns.items() if stem in files}
        text = {"edit_prompt": _read_text(edited.with_suffix(TEXT)), "edited_image": str(edited)}
        yield {"original_image": None, **pictures, **text}, str(edited), folder.root


def _pictures(folder: Path) -> dict[str, Path]:
    """Lists the files of a folder that are no tables and texts, by their names without suffix."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    return {path.stem: path for path in files if path.suffix.lower() not in DATA_SUFFIXES}


def _by_suffix(folder: Path) -> dict[str, dict[str, Path]]:
    files, columns = _pictures(folder), {}
    for column, suffix in SUFFIXES.items():
        named = {stem: files.pop(stem) for stem in list(files) if stem.endswith(suffix)}
        columns[column] = {stem.removesuffix(suffix): path for stem, path in named.items()}
    return {"edited_image": files, **columns}


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig").strip() if path.is_file() else None
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
