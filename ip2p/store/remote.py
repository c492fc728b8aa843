"""A folder of a store, by URL or path, whose files are copied whole and one at a time.

A file is put before its sidecar `<name>.json`, so that a file with a sidecar is whole on stores of any kind. A copy is
tried several times, and a local copy has its name only once it is whole.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

TRIES = 5
SECONDS_BETWEEN_TRIES = 2.0
"""Pause after the first try; each further one is twice as long."""
READ_AT_ONCE = 16
T = TypeVar("T")


class NotCopied(ValueError):
    """A file that could not be copied from a store or to it, in several tries."""


def open_store(place: str, setting: str) -> tuple[Any, str]:
    """Opens the file system that a URL or a path names; also returns the place within it.

    ValueError, which names the setting, if its protocol needs a package that is missing.
    """
    import fsspec

    options = {"use_listings_cache": False}
    if "://" not in place or place.startswith(("file://", "local://")):
        place, options = os.path.expanduser(place), {"auto_mkdir": True}
    try:
        fs, root = fsspec.core.url_to_fs(place.rstrip("/") or "/", **options)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{place} cannot be opened: {error}. Install what it names, or give another {setting}."
        ) from error
    return fs, root


@dataclass(frozen=True, slots=True)
class Remote:
    """A folder of a store."""

    place: str
    """As it was given."""
    fs: Any
    root: str

    @classmethod
    def open(cls, place: str, setting: str) -> Remote:
        """Opens a folder, which need not exist. ValueError as of `open_store`."""
        return cls(place, *open_store(place, setting))

    @property
    def folder(self) -> Path | None:
        """The folder if it lies in this machine's file system."""
        protocols = self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        return Path(self.root) if "file" in protocols else None

    def sizes(self) -> dict[str, int]:
        """Returns the sizes of the files, by name."""

        def find() -> dict[str, Any]:
            try:
                return dict(self.fs.find(self.root, detail=True))
            except FileNotFoundError:
                return {}

        entries = self._in_tries(find, f"{self.place} could not be listed")
        return {path.rpartition("/")[2]: int(info["size"]) for path, info in entries.items()}

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a JSON object; empty if there is none or it is damaged."""

        def read() -> bytes:
            try:
                return bytes(self.fs.cat_file(self._at(name)))
            except FileNotFoundError:
                return b"{}"

        try:
            value = json.loads(self._in_tries(read, f"{self._told(name)} could not be read"))
        except NotCopied:
            raise
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def read_all_json(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Reads several at a time, in their order."""
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            return list(pool.map(self.read_json, names))

    def write_json(self, name: str, value: object) -> None:
        """Writes a JSON object."""
        content = f"{json.dumps(value)}\n".encode()
        self._in_tries(lambda: self.fs.pipe_file(self._at(name), content), f"{self._told(name)} could not be written")

    def put(self, path: Path, facts: object) -> None:
        """Copies a file into the store, then the facts about it as its sidecar."""
        place = self._at(path.name)
        self._in_tries(lambda: self.fs.put_file(str(path), place), f"{path} could not be copied to {self.place}")
        self.write_json(f"{path.name}.json", facts)

    def get(self, path: Path, size: int) -> None:
        """Copies the file of a path's name to that path. NotCopied if it does not come whole, of this size."""
        partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")

        def copy() -> None:
            self.fs.get_file(self._at(path.name), str(partial))
            if (got := partial.stat().st_size) != size:
                raise OSError(f"{got} of {size} bytes came")

        try:
            self._in_tries(copy, f"{self._told(path.name)} could not be copied")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _told(self, name: str) -> str:
        return f"{self.place}/{name}"

    def _in_tries(self, act: Callable[[], T], failure: str) -> T:
        """Returns what an act does, tried several times. NotCopied, one line with the way out, if none succeeds."""
        for number in range(TRIES):
            try:
                return act()
            except Exception as error:  # stores raise many kinds
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                if number == TRIES - 1:
                    way_out = "Run again once the store can be reached; what is whole is kept."
                    raise NotCopied(f"{failure} in {TRIES} tries: {reason}. {way_out}") from error
                logger.warning("%s: %s; trying again", failure, reason)
                time.sleep(SECONDS_BETWEEN_TRIES * 2**number)
        raise AssertionError("no try was made")
