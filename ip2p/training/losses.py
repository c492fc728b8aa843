"""Keeps `loss.jsonl`, a line per interval; a resumed training cuts it back to its checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ip2p.store.journal import RecordFile


class LossLog:
    """Appends entries after those that a checkpoint has seen."""

    def __init__(self, path: Path, step: int, *, enabled: bool = True) -> None:
        self._file, self.enabled = RecordFile(path, durable=False), enabled
        if enabled:
            self._file.rewrite([entry for entry in read_losses(path) if entry["step"] <= step])

    def write(self, step: int, loss: float, lr: float, seconds: float) -> None:
        """Adds the mean loss since the last entry."""
        if self.enabled:
            self._file.append({"step": step, "loss": round(loss, 6), "lr": lr, "seconds": round(seconds, 2)})


def read_losses(path: Path) -> list[dict[str, Any]]:
    """Reads the whole entries of a loss log; a line that a kill cut short is left out."""
    return RecordFile(path).read()


def mean_of_last(entries: list[dict[str, Any]], num_steps: int = 100) -> float:
    """Averages the loss over the last steps, each entry weighing the steps that it stands for."""
    total, count, before = 0.0, 0, 0
    for entry in entries:
        steps, before = entry["step"] - before, entry["step"]
        if entry["step"] > entries[-1]["step"] - num_steps:
            total, count = total + entry["loss"] * steps, count + steps
    return total / count if count else math.nan
