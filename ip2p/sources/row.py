"""One row of data and its place, and what tables of them have in common.

A row knows its place, so that errors name file and number, and the folder that its paths are relative to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


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
