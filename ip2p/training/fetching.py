"""Has the parts of a latent cache at hand that a step needs, and copies those that come next on threads.

The threads end with the process, whatever they wait for. Other processes of the node may copy and remove the same.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ip2p.store import lock_file
from ip2p.store.remote import NotCopied
from ip2p.training.cache_store import CacheStore, Index
from ip2p.training.loop import KEPT, Interrupted

logger = logging.getLogger(__name__)

THREADS = 4
READS = 3
"""How often a part is copied anew if it cannot be read, as it is damaged or was removed by another process."""
SECONDS_BETWEEN_LOOKS = 0.1
"""How often what waits for a part looks whether the training is to stop."""


class FetchedParts:
    """The parts of a cache that is filled, by number; those that the local folder lacks are copied from the store."""

    def __init__(
        self,
        store: CacheStore,
        index: Index,
        stop_requested: threading.Event | None = None,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        """Takes the event that asks the training to stop, and this process's number among those of the node."""
        self.store, self.names = store, index.names("rows")
        self.sizes = [facts.size for facts in index.rows]
        self.stop_requested = stop_requested or threading.Event()
        self.process_index, self.num_processes = process_index, num_processes
        self._mapped: dict[int, dict[str, Tensor]] = {}
        self._fetches: dict[int, Future[None]] = {}
        self._entered: tuple[Sequence[int], Sequence[int]] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int, /) -> dict[str, Tensor]:
        """Returns a part, mapped into memory. Interrupted if the training is to stop before it is here."""
        if number not in self._mapped:
            self._mapped[number] = self._read(number)
        return self._mapped[number]

    def enter(self, needed: Sequence[int], coming: Sequence[int]) -> None:
        """Removes all parts but some, waits for the needed ones and starts to copy those that come next."""
        if self._entered == (needed, coming):
            return
        self._leave_others({*needed}, {*needed, *coming})
        self._start(needed)
        for number in needed:
            self[number]  # mapped, it outlives its removal by a process that is ahead
        self._start(coming)
        self._entered = needed, coming

    def _leave_others(self, needed: set[int], kept: set[int]) -> None:
        self._mapped = {number: part for number, part in self._mapped.items() if number in needed}
        self._fetches = {number: fetch for number, fetch in self._fetches.items() if number in kept}
        names = {self.names[number] for number in kept}
        for path in self.store.folder.glob("rows-*.safetensors"):
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _start(self, numbers: Sequence[int]) -> None:
        """Starts to copy parts; each process of a node begins with others."""
        new = [number for number in numbers if number not in self._fetches]
        first = len(new) * self.process_index // self.num_processes
        new = new[first:] + new[:first]
        self._fetches |= {number: Future() for number in new}
        for thread in range(min(THREADS, len(new))):
            share = {number: self._fetches[number] for number in new[thread::THREADS]}
            threading.Thread(target=self._fetch_all, args=(share,), name="fetch", daemon=True).start()

    def _fetch_all(self, fetches: Mapping[int, Future[None]]) -> None:
        for number, fetch in fetches.items():
            try:
                with self._alone(self.names[number]):
                    self.store.pull_part(self.names[number], self.sizes[number])
            except BaseException as error:
                fetch.set_exception(error)
            else:
                fetch.set_result(None)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Keeps the node's other processes from copying the same part."""
        lock: FileLock | None = None
        if self.num_processes > 1:
            try:
                lock = lock_file(self.store.folder / f".{name}.lock", wait=True)
            except OSError:
                logger.debug("%s cannot be locked; each process copies %s", self.store.folder, name)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _read(self, number: int) -> dict[str, Tensor]:
        path = self.store.folder / self.names[number]
        for _ in range(READS):
            self._start([number])
            self._wait_for(self._fetches[number])
            try:
                return load_file(path)
            except (SafetensorError, FileNotFoundError) as error:
                logger.warning("%s is copied anew: %s", path, error)
                path.unlink(missing_ok=True)
                del self._fetches[number]
        index = "finished.json beside it"
        place = f"{self.store.remote.place}/{path.name}"
        raise NotCopied(f"{place} is damaged. Remove it and {index}, and run again: it is then encoded anew.")

    def _wait_for(self, fetch: Future[None]) -> None:
        while not wait([fetch], SECONDS_BETWEEN_LOOKS).done:
            if self.stop_requested.is_set():
                raise Interrupted(KEPT)
        fetch.result()
