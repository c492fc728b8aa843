"""A run folder on an object store: the run works in a local copy, whose finished files are copied to the store.

A thread looks for new files every few seconds. It copies a shard before its sidecar, and files about the whole run
last. So the store holds what the local folder held a moment ago, under the same rule: a shard is done if its sidecar is
there and its checksum holds. A run that is resumed elsewhere first copies the store's files. A file in the store names
the owner, who renews it; two runs that start within the same second can both claim the folder.

Workers of the owner that do not share its disk write shards to the store themselves (`shard_copy`); it copies them from
there as they end.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ip2p.console import last_act
from ip2p.records import content_hash
from ip2p.store.remote import open_store
from ip2p.store.shards import read_json, write_json

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 3.0
OWNER = ".ip2p-owner"
OWNER_LIVES = 60.0
"""Seconds after which an owner that did not renew its file counts as dead."""
RECORD = ".mirror.json"
LAST = ("config.json", "summary.json", "completed.json", "manifest.json")
"""Files about other files."""
LEFT_OUT = ("training/cache/",)
"""Files that are faster to make again than to copy."""
ALL = ("",)
"""Beginning of every path in a run folder."""


def is_url(word: str) -> bool:
    """Returns whether a run folder is given as a URL such as s3://bucket/run."""
    return "://" in word


def url_of(out: Path) -> str:
    """Returns a run folder as it was written: a path has one slash of a URL's two."""
    scheme, colon, rest = str(out).partition(":/")
    return f"{scheme}://{rest.lstrip('/')}" if colon and len(scheme) > 1 and "/" not in scheme else str(out)


def scratch_for(url: str) -> Path:
    """Returns the folder of a URL's local copy, below IP2P_SCRATCH or the user's cache."""
    home = os.environ.get("IP2P_SCRATCH") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = url.rstrip("/").rpartition("/")[2]
    return Path(home) / "ip2p-runs" / f"{name}-{content_hash(url.rstrip('/'))}"


class Copied(NamedTuple):
    """A local file that was last copied either way: its time and size, and the store's mark of its content."""

    modified: int
    size: int
    token: str


@dataclass(slots=True)
class Mirror:
    """A URL and its local copy."""

    url: str
    local: Path
    fs: Any
    root: str
    copied: dict[str, Copied] = field(default_factory=dict)
    """Files by path."""
    me: str = field(default_factory=lambda: f"process {os.getpid()} on {platform.node()}")
    _copying: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def open(cls, url: str, local: Path | None = None) -> Mirror:
        """Opens a URL, with its scratch folder or another one as the local copy.

        ValueError if its protocol needs a package that is missing, or if it cannot be reached.
        """
        local = local or scratch_for(url)
        mirror = cls(url, local, *open_store(url, "--out"))
        local.mkdir(parents=True, exist_ok=True)
        if (local / RECORD).is_file():
            record = read_json(local / RECORD)
            mirror.copied = {path: Copied(*values) for path, values in record.items()}
        return mirror

    def take(self) -> None:
        """Claims the run. ValueError if another process renewed its claim a moment ago."""
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

    def pull(self, beginnings: Sequence[str] = ALL) -> int:
        """Copies files that the local folder lacks or has in an older version; returns their number.

        Only files whose paths have one of the beginnings count, here as below.
        """
        with self._copying:
            return self._pull(beginnings)

    def _pull(self, beginnings: Sequence[str]) -> int:
        num = 0
        for path, info in self._stored(beginnings).items():
            local, token, copied = self.local / path, _token(info), self.copied.get(path)
            if local.is_file() and (copied is None or copied.token == token):
                continue  # unchanged, or made here and not copied yet when the process ended
            local.parent.mkdir(parents=True, exist_ok=True)
            partial = local.with_name(f".{local.name}.{os.getpid()}.partial")
            self.fs.get_file(f"{self.root}/{path}", str(partial))
            os.replace(partial, local)
            stat = local.stat()
            self.copied[path] = Copied(stat.st_mtime_ns, stat.st_size, token)
            num += 1
        self._save()
        return num

    def push(self, beginnings: Sequence[str] = ALL, *, delete: bool = False) -> int:
        """Copies new local files and returns their number; `delete` also removes files that are gone from the store.

        A file that was never here, as a worker wrote it, is not removed.
        """
        with self._copying:
            return self._push(beginnings, delete)

    def _push(self, beginnings: Sequence[str], delete: bool) -> int:
        files = {path: stat for path, stat in self._local_files() if path.startswith(tuple(beginnings))}
        new = [path for path, stat in files.items() if self.copied.get(path, ())[:2] != stat]
        stats: dict[str, os.stat_result] = {}
        for path in sorted(new, key=_rank):
            try:
                stat = (self.local / path).stat()
                self.fs.put_file(str(self.local / path), f"{self.root}/{path}")
            except FileNotFoundError:
                continue  # replaced or removed meanwhile; the next look sees its successor
            stats[path] = stat
        if not stats and not delete:
            return 0
        stored = self._stored(beginnings)
        for path in stats.keys() & stored.keys():
            self.copied[path] = Copied(stats[path].st_mtime_ns, stats[path].st_size, _token(stored[path]))
        for path in (stored.keys() & self.copied.keys()) - files.keys() if delete else ():
            self.fs.rm_file(f"{self.root}/{path}")
            self.copied.pop(path, None)
        self._save()
        return len(stats)

    def forget(self, beginnings: Sequence[str]) -> None:
        """Removes local files, which stay in the store."""
        for path, _ in list(self._local_files()):
            if path.startswith(tuple(beginnings)):
                (self.local / path).unlink(missing_ok=True)
                self.copied.pop(path, None)

    @contextmanager
    def following(self, beginnings: Sequence[str] = ALL, *, is_owner: bool = True) -> Iterator[None]:
        """Copies finished files while the body runs, and the others at its end, also after an error or a signal.

        The owner also renews its claim, removes files from the store that are gone here, and gives the claim up.
        """
        done = threading.Event()
        thread = threading.Thread(target=self._follow, args=(done, beginnings, is_owner), daemon=True)
        thread.start()

        def end() -> None:
            done.set()
            thread.join()
            self.push(beginnings, delete=is_owner)
            if is_owner:
                self.release()

        try:
            with last_act(end):
                yield
        finally:
            end()

    def _follow(self, done: threading.Event, beginnings: Sequence[str], is_owner: bool) -> None:
        renewed = time.monotonic()
        while not done.wait(SECONDS_BETWEEN_LOOKS):
            try:
                self.push(beginnings)
                if is_owner and time.monotonic() - renewed > OWNER_LIVES / 3:
                    self._renew()
                    renewed = time.monotonic()
            except OSError as error:  # the store may be unavailable for a moment; only the last copy must succeed
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

    def _stored(self, beginnings: Sequence[str] = ALL) -> dict[str, Any]:
        """Returns the store's files by path, without hidden ones; lists no more than the beginnings require."""
        entries: dict[str, Any] = {}
        for beginning in beginnings:
            folder, _, name = beginning.rpartition("/")
            place = f"{self.root.rstrip('/')}/{folder}".rstrip("/")
            with suppress(FileNotFoundError):
                entries |= self.fs.find(place, detail=True, **({"prefix": name} if name else {}))
        start = len(self.root.rstrip("/")) + 1
        files = {path[start:]: info for path, info in entries.items()}
        return {
            path: info for path, info in files.items() if path.startswith(tuple(beginnings)) and "/." not in f"/{path}"
        }

    def _save(self) -> None:
        write_json(self.local / RECORD, self.copied)


_open: dict[Path, Mirror] = {}
"""Mirrors of the runs that this process works in, by local copy."""


def mirror_of(folder: Path) -> Mirror | None:
    """Returns the mirror whose local copy a run folder of this process is; None if it is a folder like any other."""
    return _open.get(folder)


@contextmanager
def working_copy(place: str) -> Iterator[Path]:
    """Yields the run folder to work in: the place itself, or the local copy of a URL, whose files are copied there."""
    if not is_url(place):
        yield Path(place).expanduser()
        return
    mirror = Mirror.open(place)
    mirror.take()
    num = mirror.pull()
    logger.info("%s: working in %s, %d files copied from there", place, mirror.local, num)
    _open[mirror.local] = mirror
    try:
        with mirror.following():
            yield mirror.local
    finally:
        del _open[mirror.local]


def _token(info: Mapping[str, object]) -> str:
    """Marks a stored file's content: changes whenever it does."""
    facts = {name: str(info[name]) for name in ("ETag", "etag", "md5", "mtime", "created", "size") if name in info}
    return content_hash(json.dumps(facts, sort_keys=True))


def _rank(path: str) -> tuple[int, str]:
    """Sorts shards first, then their sidecars, then files about them all."""
    name = path.rpartition("/")[2]
    return (2 if name in LAST else int(name.endswith(".json"))), path
