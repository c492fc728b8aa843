"""Runs the training loop: steps, the loss log, trackers, validation, checkpoints, and an end that loses nothing.

`loss.jsonl` has a line per interval; a resumed training cuts it back to its checkpoint.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ip2p.store.journal import RecordFile
from ip2p.store.remote import NotCopied
from ip2p.training.checkpoint import Progress, write_checkpoint
from ip2p.training.trainer import Trainer, pairs_per_step
from ip2p.training.validation import Validation

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 30.0
KEPT = "stopped; what is whole is kept. Run again to resume."


def train(
    trainer: Trainer, output: Path, progress: Progress, num_steps: int, stop: Stop, validation: Validation
) -> Progress:
    """Trains from `progress` to the last step, under its way of drawing. Raises Interrupted if asked to stop."""
    end = num_steps * trainer.config.gradient_accumulation_steps
    trainer = replace(trainer, stream=replace(trainer.stream, drawing=progress.drawing, end=end))
    with trainer.reading_ahead(num_steps) as reading:
        _train(reading, output, progress, num_steps, stop, validation)
    return progress


def _train(
    trainer: Trainer, output: Path, progress: Progress, num_steps: int, stop: Stop, validation: Validation
) -> None:
    config, accelerator, is_main = trainer.config, trainer.accelerator, trainer.accelerator.is_main_process
    course, shared_stop = Course(trainer, output, progress, num_steps), SharedStop(stop, accelerator)
    steps = range(progress.step, num_steps)
    disable = None if is_main else True  # None hides the bar unless a terminal shows it
    for step in tqdm(steps, desc="train", unit="step", initial=progress.step, total=num_steps, disable=disable):
        torch.manual_seed(hash((config.seed, step, accelerator.process_index)))  # for a denoiser with dropout layers
        with course.kept():
            course.add(*trainer.step(step))
        if progress.step % config.log_every == 0 or course.is_over:
            accelerator.log(course.log(), step=progress.step)
        stopping = shared_stop.after_step(is_last=course.is_over)
        is_saved = progress.step % config.checkpointing_steps == 0 or course.is_over or stopping
        if is_saved:
            course.save()
        if stopping and not course.is_over:
            raise Interrupted(f"stopped at step {progress.step} of {num_steps}; run again to resume.")
        if validation.is_due(progress.step):
            try:
                with nullcontext() if accelerator.num_processes > 1 else stop.at_once():  # for which others would wait
                    validation.run(trainer, progress.step)
            except Interrupted:
                if not is_saved:
                    course.save()
                raise


class Course:
    """Counts what a training has done: steps, seconds, the loss since the last entry of the log, and its speed."""

    def __init__(self, trainer: Trainer, output: Path, progress: Progress, num_steps: int) -> None:
        self.trainer, self.accelerator, self.output = trainer, trainer.accelerator, output
        self.progress, self.num_steps, self.first_step = progress, num_steps, progress.step
        self.losses = LossLog(output / "loss.jsonl", progress.step, enabled=self.accelerator.is_main_process)
        self.loss_sum = torch.tensor(progress.loss_sum, device=self.accelerator.device)
        self.norm = torch.zeros(())
        self.started = time.monotonic() - progress.seconds
        self.reported_at = self.logged_at = time.monotonic()
        self.logged_step = progress.step

    @property
    def is_over(self) -> bool:
        """True after the last step."""
        return self.progress.step == self.num_steps

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Counts a step."""
        self.loss_sum += loss
        self.norm = norm
        self.progress.step += 1
        self.progress.loss_count += 1

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Saves what is done if no part of the cache comes for a step, which then was not taken.

        With several processes the others would be waited for in vain.
        """
        try:
            yield
        except (Interrupted, NotCopied):
            if self.accelerator.num_processes == 1 and self.progress.step > self.first_step:
                self.save()
            raise

    def settle(self) -> None:
        """Brings the counters of a checkpoint up to date; every process has to take part."""
        self.progress.seconds = time.monotonic() - self.started
        self.progress.loss_sum = float(self.accelerator.reduce(self.loss_sum, "mean"))

    def save(self) -> None:
        """Writes a checkpoint; every process has to take part."""
        self.settle()
        config, is_main = self.trainer.config, self.accelerator.is_main_process
        limit, decay = config.checkpoints_total_limit, config.ema_decay
        write_checkpoint(self.output, self.trainer.trained, self.progress, limit, decay, is_main=is_main)
        self.accelerator.wait_for_everyone()

    def log(self) -> dict[str, float]:
        """Writes an entry of the loss log and starts the next; returns the trackers' figures."""
        self.settle()
        progress, loss, now = self.progress, self.progress.loss_sum / self.progress.loss_count, time.monotonic()
        rate = float(self.trainer.trained.schedule.get_last_lr()[0])
        self.losses.write(progress.step, loss, rate, progress.seconds)
        pairs = (progress.step - self.logged_step) * pairs_per_step(self.trainer.config, self.accelerator.num_processes)
        speed = pairs / max(now - self.logged_at, 1e-9)
        self.logged_at, self.logged_step = now, progress.step
        figures = {"train_loss": loss, "lr": rate, "grad_norm": float(self.norm), "pairs_per_second": speed}
        if self.accelerator.device.type == "cuda":
            figures["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.loss_sum.zero_()
        progress.loss_count = 0
        if now - self.reported_at > SECONDS_BETWEEN_REPORTS or self.is_over:
            self._report(loss)
        return figures

    def _report(self, loss: float) -> None:
        self.reported_at = time.monotonic()
        step, first = self.progress.step, self.first_step
        rate = step / max(time.monotonic() - self.started, 1e-9)
        left = (self.num_steps - step) / rate
        resumed = f" (from step {first})" if first else ""
        logger.info(
            "step %d of %d: loss %.4f, %.2f steps/s, %.0f s left%s", step, self.num_steps, loss, rate, left, resumed
        )


class LossLog:
    """Appends entries after those that a checkpoint has seen."""

    def __init__(self, path: Path, step: int, *, enabled: bool = True) -> None:
        self._file, self.enabled = RecordFile(path, durable=False), enabled
        if enabled:
            self._file.rewrite([entry for entry in self._file.read() if entry["step"] <= step])

    def write(self, step: int, loss: float, lr: float, seconds: float) -> None:
        """Adds the mean loss since the last entry."""
        if self.enabled:
            self._file.append({"step": step, "loss": round(loss, 6), "lr": lr, "seconds": round(seconds, 2)})


def mean_of_last(entries: Sequence[Mapping[str, float]], num_steps: int = 100) -> float:
    """Averages the loss over the last steps, weighting each entry by the steps it covers."""
    total = count = before = 0.0
    for entry in entries:
        steps, before = entry["step"] - before, entry["step"]
        if entry["step"] > entries[-1]["step"] - num_steps:
            total, count = total + entry["loss"] * steps, count + steps
    return total / count if count else math.nan


@dataclass(slots=True)
class Stop:
    """Set by a signal or by the end of the process that started this one.

    It ends what is under way at once; the loop, within `deferred`, first ends its step and saves.
    """

    requested: threading.Event = field(default_factory=threading.Event)
    is_deferred: bool = False

    def on_signals(self) -> Stop:
        """Listens to SIGINT and SIGTERM."""
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: self._ask())
        return self

    def _ask(self) -> None:
        if self.requested.is_set():  # what it interrupted is ending
            return
        self.requested.set()
        if not self.is_deferred:
            raise Interrupted(KEPT)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Leaves it to what is done inside to look at `requested`."""
        self.is_deferred = True
        try:
            yield
        finally:
            self.is_deferred = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Heeds it inside `deferred` too, while something is done that takes long and is done anew after a resume."""
        if self.requested.is_set():
            raise Interrupted(KEPT)
        self.is_deferred = False
        try:
            yield
        finally:
            self.is_deferred = True

    def on_end_of_input(self) -> Stop:
        """Listens to the end of standard input, which the starting process holds open as long as it lives."""
        threading.Thread(target=self._read_to_end, daemon=True).start()
        return self

    def _read_to_end(self) -> None:
        while os.read(0, 4096):  # unbuffered, so that the thread holds no lock when the process ends
            pass
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, signal.SIGTERM)  # which also wakes it where it waits


class SharedStop:
    """Has all processes stop after the same step if one of them is asked to.

    What they ask each other after a step is answered after the next: no process waits for the others, and a device has
    the next step to do while the answer is read.
    """

    def __init__(self, stop: Stop, accelerator: Accelerator) -> None:
        self._stop, self._device, self._is_alone = stop, accelerator.device, accelerator.num_processes == 1
        self._asked: tuple[torch.distributed.Work, Tensor] | None = None
        on_gpu = self._device.type == "cuda" and not self._is_alone
        # On a stream of its own, a read does not wait for the step that runs.
        self._aside = torch.cuda.Stream(self._device) if on_gpu else None  # type: ignore[no-untyped-call]

    def after_step(self, *, is_last: bool) -> bool:
        """Tells whether to stop now; every process has to ask after every step."""
        is_asked = self._stop.requested.is_set()
        if self._is_alone:
            return is_asked
        stopping = self._asked is not None and self._answer(*self._asked)
        self._asked = None if stopping or is_last else self._ask(is_asked)
        return stopping

    def _ask(self, is_requested: bool) -> tuple[torch.distributed.Work, Tensor]:
        flag = torch.full((), float(is_requested), device=self._device)
        return torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, async_op=True), flag

    def _answer(self, work: torch.distributed.Work, flag: Tensor) -> bool:
        with torch.cuda.stream(self._aside):
            work.wait()
            return bool(flag)


class Interrupted(BaseException):
    """The training was asked to stop and what it has done is saved. No `except Exception` takes it for a failure."""
