"""How far a run is, as Prefect's page shows it while the run works.

Shards are counted as they end, the evaluation tells by itself, and a training, which is a process of its own, is
followed by the log of its loss. What cannot be told to the server is left out: a run never fails for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from ip2p.config import PipelineConfig
from ip2p.store import RunFolder
from ip2p.training.losslog import read_losses

logger = logging.getLogger("ip2p.progress")

SECONDS_BETWEEN_UPDATES = 2.0


class Bar:
    """A progress artifact; made when there is something to show."""

    def __init__(self, key: str, description: str) -> None:
        self._key, self._description = key, description
        self._id: Any = None
        self._shown, self._at = -1.0, 0.0

    def show(self, share: float) -> None:
        """Shows a share of the work, in 0 to 1; not more often than is worth while."""
        percent, now = round(100 * min(max(share, 0.0), 1.0), 1), time.monotonic()
        if percent == self._shown or (percent < 100 and now - self._at < SECONDS_BETWEEN_UPDATES):
            return
        try:
            if self._id is None:
                self._id = create_progress_artifact(percent, key=f"progress-{self._key}", description=self._description)
            else:
                update_progress_artifact(self._id, percent)
        except Exception as error:  # of the client's many kinds; progress is for looking at only
            logger.debug("the progress of %s was not told: %s", self._key, error)
        self._shown, self._at = percent, now


class Count:
    """A bar of so many things, one after another."""

    def __init__(self, key: str, description: str, total: int) -> None:
        self._bar, self._done, self._total = Bar(key, description), 0, total

    def add(self) -> None:
        """One more is done."""
        self._done += 1
        self._bar.show(self._done / self._total)


@contextmanager
def training_followed(config: PipelineConfig) -> Iterator[None]:
    """Shows the steps of the training that the body runs, where their number is known beforehand."""
    steps = config.training.max_train_steps
    if steps is None:
        yield
        return
    bar, done = Bar("training", f"Training, {steps} steps"), threading.Event()
    bar.show(0.0)
    follow = threading.Thread(target=_follow, args=(config, steps, bar.show, done), daemon=True)
    follow.start()
    try:
        yield
    finally:
        done.set()
        follow.join()
    bar.show(1.0)


def _follow(config: PipelineConfig, steps: int, show: Callable[[float], object], done: threading.Event) -> None:
    """Looks at the log from time to time; one that an earlier training left is not this one's."""
    path, started = RunFolder(config.out).training / "loss.jsonl", time.time()
    while not done.wait(SECONDS_BETWEEN_UPDATES):
        if path.exists() and path.stat().st_mtime >= started:
            show((read_losses(path) or [{"step": 0}])[-1]["step"] / steps)
