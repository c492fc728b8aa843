"""Reads WebDataset archives: tar files in which the files of one sample share their name up to the first dot.

`7.original_image.png` and `7.json` are the columns `original_image` and those that the JSON object has, of sample 7.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ip2p.sources.files import Unreadable, Values, parse_json

MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.+([^/]+)")
"""Key and column of a member: what is before the first dot of its name, and what is after it."""
PICTURE_SUFFIX = re.compile(r"\.(?:png|jpe?g|webp|bmp|tiff?)$", re.IGNORECASE)
WAY_OUT = "Unpack it if it is compressed, or write it again."


@dataclass(frozen=True, slots=True)
class Sample:
    """Where the files of one sample lie in an archive."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(offset, size) by what follows the key."""


def read_index(path: Path) -> list[Sample]:
    """Lists the samples of an archive, in order, without reading their files. ValueError if it is broken."""
    samples: dict[str, Sample] = {}
    for name, offset, size in _members(path):
        if match := MEMBER.fullmatch(name):
            samples.setdefault(match[1], Sample(match[1])).members[match[2]] = offset, size
    return list(samples.values())


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile() and not Path(member.name).name.startswith("."):
                    yield member.name, member.offset_data, member.size
                archive.members = []  # type: ignore[attr-defined]  # it would keep every header
    except (tarfile.TarError, OSError) as error:
        raise Unreadable(f"{path} cannot be read as a tar archive: {error}. {WAY_OUT}") from error


def read_sample(path: Path, sample: Sample) -> Values:
    """Reads a sample: pictures and other files as bytes, texts as text, and the values of JSON objects as columns.

    ValueError names a file that is not what its suffix says.
    """
    values: Values = {}
    with path.open("rb") as archive:
        for name, (offset, size) in sample.members.items():
            archive.seek(offset)
            values |= _as_columns(name, archive.read(size), f"{path} sample {sample.key}")
    return values


def _as_columns(name: str, content: bytes, where: str) -> Values:
    try:
        if name == "json" or name.endswith(".json"):
            value = parse_json(content.decode())
            return value if isinstance(value, dict) else {name: value}
        if name == "txt" or name.endswith(".txt"):
            return {name: content.decode()}
    except ValueError as error:
        raise Unreadable(f"{where} holds a {name} that cannot be read: {error}.") from error
    return {PICTURE_SUFFIX.sub("", name): content}
