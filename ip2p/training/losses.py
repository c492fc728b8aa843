"""`loss.jsonl`: a line per interval. A resumed training cuts it back to its checkpoint: no step is in it twice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ip2p.store import write_atomic


class LossLog:
    """Appends entries; knows the file's state at the step where it is opened."""

    def __init__(self, path: Path, step: int, *, enabled: bool = True) -> None:
        self.path, self.enabled = path, enabled
        if enabled:
            kept = [json.dumps(entry) + "\n" for entry in read_losses(path) if entry["step"] <= step]
            write_atomic(path, lambda file: file.writelines(line.encode() for line in kept))

    def write(self, step: int, loss: float, lr: float, seconds: float) -> None:
        """Adds the mean loss since the last entry."""
        if not self.enabled:
            return
        entry = {"step": step, "loss": round(loss, 6), "lr": lr, "seconds": round(seconds, 2)}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def read_losses(path: Path) -> list[dict[str, Any]]:
    """The whole entries of a loss log; a line that a kill cut short is left out."""
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def mean_of_last(entries: list[dict[str, Any]], num_steps: int = 100) -> float:
    """Mean loss over the last steps, each entry weighing the steps that it stands for."""
    total, count, before = 0.0, 0, 0
    for entry in entries:
        steps, before = entry["step"] - before, entry["step"]
        if entry["step"] > entries[-1]["step"] - num_steps:
            total, count = total + entry["loss"] * steps, count + steps
    return total / count if count else math.nan
