"""A run folder on an object store: work is done in a local copy, and what is finished there is copied to the store.

A thread looks for new files every few seconds and copies a shard before its sidecar, and what tells of the whole last.
So the store holds what the local folder held a moment before, under the same rule: a shard is done when its sidecar is
there and its checksum holds. A run that is gone on with elsewhere first copies the store's files. One run at a time is
kept by a file in the store that its owner renews; two that start in the same second are not told apart.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ip2p.records import content_hash

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 3.0
OWNER = ".ip2p-owner"
OWNER_LIVES = 60.0
"""Seconds after which an owner that did not renew its file is held for dead."""
RECORD = ".mirror.json"
LAST = ("config.json", "summary.json", "completed.json", "manifest.json")
"""Files that speak of others."""
LEFT_OUT = ("training/cache/",)
"""Made again faster than copied."""


def is_url(word: str) -> bool:
    """Whether a run folder is given as a URL such as s3://bucket/run."""
    return "://" in word


def scratch_for(url: str) -> Path:
    """Where the local copy of a URL lies: below IP2P_SCRATCH, or the user's cache."""
    home = os.environ.get("IP2P_SCRATCH") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = url.rstrip("/").rpartition("/")[2]
    return Path(home) / "ip2p-runs" / f"{name}-{content_hash(url.rstrip('/'))}"


@dataclass(slots=True)
class Mirror:
    """A URL and its local copy."""

    url: str
    local: Path
    fs: Any
    root: str
    known: dict[str, list[Any]] = field(default_factory=dict)
    """By path: time and size of the local file that was last copied either way, and the store's word on its content."""
    me: str = field(default_factory=lambda: f"process {os.getpid()} on {platform.node()}")

    @classmethod
    def open(cls, url: str) -> Mirror:
        """ValueError where nothing that is installed speaks the URL's protocol, or it cannot be reached."""
        import fsspec

        local = scratch_for(url)
        try:
            fs, root = fsspec.core.url_to_fs(url.rstrip("/"), use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ValueError(
                f"{url} cannot be opened: {error}. Install what it names, or give another --out."
            ) from error
        mirror = cls(url, local, fs, root)
        local.mkdir(parents=True, exist_ok=True)
        if (local / RECORD).is_file():
            mirror.known = json.loads((local / RECORD).read_text())
        return mirror

    def take(self) -> None:
        """Claims the run. ValueError where another process renewed its claim a moment ago."""
        path = f"{self.root}/{OWNER}"
        try:
            owner = json.loads(self.fs.cat_file(path))
        except (FileNotFoundError, ValueError):
            owner = None
        if owner and owner["who"] != self.me and time.time() - owner["at"] < OWNER_LIVES:
            raise ValueError(f"{self.url} is in use by {owner['who']}. Wait for it, or give another --out.")
        self._renew()

    def _renew(self) -> None:
        self.fs.pipe_file(f"{self.root}/{OWNER}", json.dumps({"who": self.me, "at": time.time()}).encode())

    def release(self) -> None:
        """Gives the claim up."""
        self.fs.rm_file(f"{self.root}/{OWNER}")

    def pull(self) -> int:
        """Copies what the store has and the local folder lacks or has in an older version; returns how many files."""
        num = 0
        for path, info in self._stored().items():
            local, token = self.local / path, self._token(info)
            if local.is_file() and self.known.get(path, [None] * 3)[2] == token:
                continue
            if local.is_file() and path not in self.known:
                continue  # made here and not yet copied when the process ended
            local.parent.mkdir(parents=True, exist_ok=True)
            partial = local.with_name(f".{local.name}.{os.getpid()}.partial")
            self.fs.get_file(f"{self.root}/{path}", str(partial))
            os.replace(partial, local)
            self._note(path, token)
            num += 1
        self._save()
        return num

    def push(self, *, delete: bool = False) -> int:
        """Copies what is new in the local folder; with `delete` also removes what is no longer there."""
        found = dict(self._local_files())
        new = [path for path, stat in found.items() if self.known.get(path, [None, None])[:2] != list(stat)]
        copied: dict[str, os.stat_result] = {}
        for path in sorted(new, key=_rank):
            try:
                stat = (self.local / path).stat()
                self.fs.put_file(str(self.local / path), f"{self.root}/{path}")
            except FileNotFoundError:
                continue  # replaced or removed meanwhile; the next look finds what came in its place
            copied[path] = stat
        if not copied and not delete:
            return 0
        stored = self._stored()
        for path, stat in ((path, stat) for path, stat in copied.items() if path in stored):
            self.known[path] = [stat.st_mtime_ns, stat.st_size, self._token(stored[path])]
        for path in (stored.keys() - found.keys()) if delete else ():
            self.fs.rm_file(f"{self.root}/{path}")
            self.known.pop(path, None)
        self._save()
        return len(copied)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Copies what is finished while the body runs, and all that is left at its end, also on error."""
        done = threading.Event()
        thread = threading.Thread(target=self._follow, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.push(delete=True)
            self.release()

    def _follow(self, done: threading.Event) -> None:
        renewed = time.monotonic()
        while not done.wait(SECONDS_BETWEEN_LOOKS):
            try:
                self.push()
                if time.monotonic() - renewed > OWNER_LIVES / 3:
                    self._renew()
                    renewed = time.monotonic()
            except OSError as error:  # the store may be away for a moment; the last copy must succeed
                logger.warning("could not copy to %s: %s", self.url, error)

    def _local_files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for path in self.local.rglob("*"):
            name = path.relative_to(self.local).as_posix()
            if any(part.startswith(".") for part in name.split("/")) or name.startswith(LEFT_OUT):
                continue
            try:
                if path.is_file():
                    yield name, (path.stat().st_mtime_ns, path.stat().st_size)
            except FileNotFoundError:
                continue

    def _stored(self) -> dict[str, Any]:
        """The store's files by path, without its hidden ones."""
        try:
            found = self.fs.find(self.root, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self.root.rstrip("/")) + 1
        return {path[start:]: info for path, info in found.items() if "/." not in f"/{path[start:]}"}

    def _token(self, info: dict[str, Any]) -> str:
        """Changes when the stored content does."""
        told = {name: str(info[name]) for name in ("ETag", "etag", "md5", "mtime", "created", "size") if name in info}
        return content_hash(json.dumps(told, sort_keys=True))

    def _note(self, path: str, token: str) -> None:
        stat = (self.local / path).stat()
        self.known[path] = [stat.st_mtime_ns, stat.st_size, token]

    def _save(self) -> None:
        from ip2p.store.shards import write_json

        write_json(self.local / RECORD, self.known)


@contextmanager
def working_copy(place: str) -> Iterator[Path]:
    """A run folder to work in: the place itself, or the local copy of a URL, which the store follows meanwhile."""
    if not is_url(place):
        yield Path(place).expanduser()
        return
    mirror = Mirror.open(place)
    mirror.take()
    num = mirror.pull()
    logger.info("%s: working in %s, %d files copied from there", place, mirror.local, num)
    with mirror.following():
        yield mirror.local


def _rank(path: str) -> tuple[int, str]:
    """Shards first, then their sidecars, then what speaks of them all."""
    name = path.rpartition("/")[2]
    return (2 if name in LAST else int(name.endswith(".json"))), path
