"""What a worker that does not share the run folder has of it: the files of a shard, copied from the store and back.

The run's store is the truth: a shard's files are copied from it before the worker starts on the shard and back as they
are finished, each shard before its sidecar, and are then removed here. What all shards read stays as long as the
process. So a node that is lost takes with it the work of a few seconds, and its disk holds the shards in flight.
"""

from __future__ import annotations

import atexit
import functools
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ip2p.store.locks import lock_file
from ip2p.store.mirror import Mirror, scratch_for
from ip2p.store.run import SHARDED

READ_BY_ALL = ("captions/", "made_from.json")
"""Files that the owner of the run writes before its shards are handed out."""
ANSWERS = "pairs/answers/"
"""Answers that shards name by what was asked; a worker copies its own to the store, and none from there."""


def files_of_shard(number: int) -> tuple[str, ...]:
    """Returns how the paths of a shard's files begin, in all stages."""
    return (*(f"{stage}/part-{number:05d}." for stage in SHARDED), f"answers/journal-{number:05d}.")


@contextmanager
def shard_copy(url: str, number: int, also: Sequence[str] = ()) -> Iterator[Path]:
    """Yields a run folder with what the store at a URL has of a shard; what is made of it goes to the store.

    `also` names what else the shard reads, by the beginnings of paths.
    """
    mirror, own = _mirror_of_worker(url), files_of_shard(number)
    mirror.pull((*READ_BY_ALL, *own, *also))
    try:
        with mirror.following((*own, ANSWERS), is_owner=False):
            yield mirror.local
    finally:
        mirror.forget((*own, ANSWERS))


@functools.cache
def _mirror_of_worker(url: str) -> Mirror:
    """Opens a run's store with a folder of this process's own, and removes those of workers that were killed."""
    scratch = scratch_for(url)
    workers = scratch.with_name(f"{scratch.name}-workers")
    folder = workers / f"{platform.node()}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # a file system without locks: nobody can tell who is alive
        _locks.append(lock_file(folder / ".lock"))
        for other in workers.iterdir():
            if other != folder and (lock := lock_file(other / ".lock")) is not None:
                shutil.rmtree(other, ignore_errors=True)
                lock.release()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Mirror.open(url, folder)


_locks: list[object] = []
"""Locks that show other processes that this one lives."""
