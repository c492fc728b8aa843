"""Locks between processes: one run per folder, one training per output folder.

The operating system holds the locks, so they are free as soon as their process ends, even if it is killed.
"""

from __future__ import annotations

import logging
import os
import platform
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

_held: dict[Path, FileLock | None] = {}
"""Locks of the run folders that this process works in; None if the file system does not support locks."""


def hold(root: Path) -> None:
    """Keeps other processes out of a run folder until this one ends, and removes half-written files there.

    ValueError if another process works in it, or if the folder cannot be created or written to.
    """
    folder = root.resolve()
    if folder in _held:
        return
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise ValueError(f"{root} cannot be written to: {error.strerror}. Give another folder with --out.") from error
    try:
        lock = lock_file(path)
    except OSError as error:
        logger.warning("%s cannot be locked (%s): do not start a second run in it", root, error)
        lock = None
    else:
        if lock is None:
            owner = "another process"
            with suppress(OSError):
                owner = path.read_text().strip() or owner
            raise ValueError(f"{root} is in use by {owner}. Wait for it, or give another folder with --out.")
        with suppress(OSError):  # Windows does not let a locked file be written
            path.write_text(f"process {os.getpid()} on {platform.node()}")
    _held[folder] = lock
    for partial in folder.rglob(".*.partial"):
        if partial.is_file():
            partial.unlink(missing_ok=True)


def lock_file(path: Path, *, wait: bool = False) -> FileLock | None:
    """Locks a file until the lock is released or the process ends; None if another process has it and `wait` is False.

    OSError if the file system does not support locks.
    """
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        return None
    return lock
