"""Reads a list of edits: JSON lines of `image` and `edit_prompt`, with paths relative to the list."""

from __future__ import annotations

import reprlib
from pathlib import Path

from ip2p.sources.location import Location
from ip2p.sources.row import Row
from ip2p.sources.rows import read_file


def read_edits(path: Path, *pictures: str) -> list[Row]:
    """Reads the rows of a list, whose columns `pictures` name files if a row has them.

    ValueError names a line that lacks a text or names something that is not a file.
    """
    rows = list(read_file(Location(str(path), "path")))
    if not rows:
        raise ValueError(f"{path} holds no edit. Write lines of `image` and `edit_prompt`.")
    for row in rows:
        for name in ("image", "edit_prompt"):
            if row.wording(name) is None:
                got = reprlib.repr(row.values.get(name))
                raise ValueError(f"{row.where} must hold `image` and `edit_prompt`, got {got} for `{name}`.")
        for name in pictures:
            if row.values.get(name) and not isinstance(row.picture(name), Path):
                got = reprlib.repr(row.values[name])
                raise ValueError(f"{row.where} names {got}, which is not a file. Write paths relative to the list.")
    return rows
