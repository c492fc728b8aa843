"""The training loop: steps, the loss log, trackers, validation, checkpoints, and an end that loses nothing."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ip2p.training.checkpoint import Progress, write_checkpoint
from ip2p.training.losses import LossLog
from ip2p.training.trainer import Trainer, pairs_per_step

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 30.0


class Watcher(Protocol):
    """Sees figures as they come."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Figures of an interval of steps."""
        ...

    def after_step(self, trainer: Trainer, step: int) -> None:
        """Called after every optimizer step, in every process."""
        ...


def train(
    trainer: Trainer,
    output: Path,
    progress: Progress,
    num_steps: int,
    stop: Stop,
    watcher: Watcher | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Progress:
    """Trains from `progress` to the last step. Raises Interrupted where asked to stop."""
    config, accelerator, trained = trainer.config, trainer.accelerator, trainer.trained
    log = LossLog(output / "loss.jsonl", progress.step, enabled=accelerator.is_main_process)
    started = time.monotonic() - progress.seconds
    reported, first = time.monotonic(), progress.step
    clock = _Clock(pairs_per_step(config, accelerator.num_processes))
    since_log = torch.tensor(progress.loss_sum, device=accelerator.device)
    for step in _with_bar(progress.step, num_steps, accelerator.is_main_process):
        torch.manual_seed(hash((config.seed, step, accelerator.process_index)))  # for a UNet with dropout layers
        loss_of_step, norm = trainer.step(step)
        since_log += loss_of_step
        progress.step, progress.loss_count = step + 1, progress.loss_count + 1
        clock.num_steps += 1
        is_last = progress.step == num_steps
        if progress.step % config.log_every == 0 or is_last:
            loss = float(accelerator.reduce(since_log, "mean")) / progress.loss_count
            progress.seconds = time.monotonic() - started
            rate = float(trained.schedule.get_last_lr()[0])
            log.write(progress.step, loss, rate, progress.seconds)
            if watcher is not None:
                watcher.log(_figures(loss, rate, norm, clock.rate(), accelerator), progress.step)
            since_log.zero_()
            progress.loss_count = 0
            if time.monotonic() - reported > SECONDS_BETWEEN_REPORTS or is_last:
                reported = time.monotonic()
                _report(progress, num_steps, loss, first, started)
        stopping = _any_process(stop.wanted.is_set(), accelerator)
        if progress.step % config.checkpointing_steps == 0 or is_last or stopping:
            progress.seconds = time.monotonic() - started
            progress.loss_sum = float(accelerator.reduce(since_log, "mean"))
            limit, is_main = config.checkpoints_total_limit, accelerator.is_main_process
            write_checkpoint(output, trained, progress, limit, config.ema_decay, is_main=is_main)
            accelerator.wait_for_everyone()
        if stopping and not is_last:
            raise Interrupted(f"stopped at step {progress.step} of {num_steps}; run again to go on.")
        if watcher is not None:
            watcher.after_step(trainer, progress.step)
        if on_step is not None:
            on_step(progress.step)
    return progress


class _Clock:
    """Pairs per second since it was last asked."""

    def __init__(self, pairs_per_step: int) -> None:
        self.pairs_per_step, self.num_steps, self.started = pairs_per_step, 0, time.monotonic()

    def rate(self) -> float:
        now = time.monotonic()
        found = self.num_steps * self.pairs_per_step / max(now - self.started, 1e-9)
        self.num_steps, self.started = 0, now
        return found


def _figures(loss: float, rate: float, norm: Tensor, pairs: float, accelerator: Accelerator) -> dict[str, float]:
    found = {"train_loss": loss, "lr": rate, "grad_norm": float(norm), "pairs_per_second": pairs}
    if accelerator.device.type == "cuda":
        found["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def _with_bar(start: int, end: int, is_main: bool) -> Iterable[int]:
    hidden = None if is_main else True
    return tqdm(range(start, end), desc="train", unit="step", initial=start, total=end, disable=hidden)


def _any_process(wanted: bool, accelerator: Accelerator) -> bool:
    if accelerator.num_processes == 1:
        return wanted
    flag = torch.tensor(float(wanted), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum") > 0)


def _report(progress: Progress, max_steps: int, loss: float, first: int, started: float) -> None:
    rate = progress.step / max(time.monotonic() - started, 1e-9)
    left = (max_steps - progress.step) / rate
    logger.info(
        "step %d of %d: loss %.4f, %.2f steps/s, %.0f s left%s",
        *(progress.step, max_steps, loss, rate, left, f" (from step {first})" if first else ""),
    )


@dataclass(slots=True)
class Stop:
    """Set by a signal or by the end of the process that started this one; the loop then saves and ends."""

    wanted: threading.Event = field(default_factory=threading.Event)

    def on_signals(self) -> Stop:
        """Listens to SIGINT and SIGTERM."""
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._on_signal)
        return self

    def on_end_of_input(self) -> Stop:
        """Listens to the end of standard input, which the starting process holds open as long as it lives."""
        threading.Thread(target=self._read_to_end, daemon=True).start()
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.wanted.set()

    def _read_to_end(self) -> None:
        while os.read(0, 4096):  # unbuffered, so that the thread holds no lock when the process ends
            pass
        self.wanted.set()


class Interrupted(RuntimeError):
    """The training was asked to stop and saved its state."""
