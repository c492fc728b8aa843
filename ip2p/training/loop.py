"""The training loop: float32 weights under autocast, a warmed average, chance that is a function of the step."""

from __future__ import annotations

import copy
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ip2p.config import TrainingConfig
from ip2p.training.cache import Batch, LatentCache
from ip2p.training.checkpoint import Progress, Trained, resume, write_checkpoint
from ip2p.training.draws import draw_samples, draw_step, weigh_timesteps
from ip2p.training.losslog import LossLog
from ip2p.training.objective import Objective, drop_conditions
from ip2p.training.optimizer import new_optimizer

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 30.0


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


@dataclass(frozen=True, slots=True)
class Trainer:
    """What a step needs and does not change."""

    config: TrainingConfig
    cache: LatentCache
    objective: Objective
    latent_scale: float
    accelerator: Accelerator
    network: nn.Module
    """The UNet as the accelerator wraps it."""
    trained: Trained

    def loss(self, micro_step: int) -> Tensor:
        """The loss of this process's batch number `micro_step`."""
        config, accelerator = self.config, self.accelerator
        size = config.train_batch_size
        first = (micro_step * accelerator.num_processes + accelerator.process_index) * size
        samples = draw_samples(len(self.cache), config.seed, first, size)
        shape = torch.Size((size, *self.cache.latent_shape))
        weights = weigh_timesteps(config, len(self.objective.alphas_cumprod))
        draws = draw_step(shape, weights, config.seed, micro_step, accelerator.process_index)
        batch: Batch = self.cache.take(samples, draws.mirrored.tolist()).to(accelerator.device)
        posterior, noise, timesteps, dropout = (
            value.to(accelerator.device) for value in (draws.posterior, draws.noise, draws.timesteps, draws.dropout)
        )
        latents = (batch.mean + batch.deviation * posterior) * self.latent_scale
        null_text = self.cache.null_text.to(accelerator.device)
        share = config.conditioning_dropout_prob
        condition, text = drop_conditions(batch.condition, batch.text, null_text, dropout, share)
        inputs = torch.cat([self.objective.noised(latents, noise, timesteps), condition], dim=1)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        prediction = self.network(inputs, timesteps, text, return_dict=False)[0]
        return self.objective.loss(prediction, latents, noise, timesteps)

    def step(self, step: int) -> Tensor:
        """One optimizer step; returns the mean loss of its micro-steps, on the device."""
        accumulation = self.config.gradient_accumulation_steps
        total = torch.zeros((), device=self.accelerator.device)
        for number in range(accumulation):
            with self._syncing(number == accumulation - 1), self._attention():
                loss = self.loss(step * accumulation + number) / accumulation
                self.accelerator.backward(loss)
            total += loss.detach()
        self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        self.trained.optimizer.step()
        self.trained.optimizer.zero_grad(set_to_none=True)
        self.trained.schedule.step()
        if self.trained.average is not None:
            update_average(self.trained.average, self.trained.unet, ema_decay_at(step + 1, self.config.ema_decay))
        return total

    def _attention(self) -> AbstractContextManager[None]:
        """Explicit maps on a CPU in bfloat16, where the backward pass of torch's fused kernel is slower than theirs."""
        explicit = self.accelerator.device.type == "cpu" and self.accelerator.mixed_precision == "bf16"
        return sdpa_kernel(SDPBackend.MATH) if explicit else nullcontext()

    def _syncing(self, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext() if is_last else self.accelerator.no_sync(self.network)


def ema_decay_at(step: int, decay: float) -> float:
    """The average's decay at a step, counted from 1: short-sighted at first."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Moves the average towards the weights."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


def new_trained(
    unet: UNet2DConditionModel, config: TrainingConfig, accelerator: Accelerator
) -> tuple[Trained, nn.Module]:
    """The UNet on its device with its average, optimizer and schedule, and the UNet as the accelerator wraps it."""
    unet = unet.to(accelerator.device, memory_format=torch.channels_last).train()
    average = copy.deepcopy(unet).eval().requires_grad_(False) if config.use_ema else None
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    matmul = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    optimizer = new_optimizer(unet, config, fused=accelerator.device.type in ("cpu", "cuda"), matmul=matmul)
    warmup, steps = config.lr_warmup_steps, config.max_train_steps
    schedule = get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    network, prepared = accelerator.prepare(unet, optimizer)
    return Trained(unet, average, prepared, schedule, accelerator.scaler), network


def train(
    trainer: Trainer, output: Path, fingerprint: str, stop: Stop, on_step: Callable[[int], None] | None = None
) -> Progress:
    """Trains to the last step, from the newest checkpoint if there is one. Raises Interrupted where asked to stop."""
    config, accelerator, trained = trainer.config, trainer.accelerator, trainer.trained
    fresh = Progress(fingerprint=fingerprint, num_processes=accelerator.num_processes)
    progress = resume(output, trained, fresh, config.max_train_steps)
    log = LossLog(output / "loss.jsonl", progress.step, enabled=accelerator.is_main_process)
    started = time.monotonic() - progress.seconds
    reported, first = time.monotonic(), progress.step
    since_log = torch.tensor(progress.loss_sum, device=accelerator.device)
    for step in _with_bar(progress.step, config.max_train_steps, accelerator.is_main_process):
        torch.manual_seed(hash((config.seed, step, accelerator.process_index)))  # for a UNet with dropout layers
        since_log += trainer.step(step)
        progress.step, progress.loss_count = step + 1, progress.loss_count + 1
        is_last = progress.step == config.max_train_steps
        if progress.step % config.log_every == 0 or is_last:
            loss = float(accelerator.reduce(since_log, "mean")) / progress.loss_count
            progress.seconds = time.monotonic() - started
            log.write(progress.step, loss, float(trained.schedule.get_last_lr()[0]), progress.seconds)
            since_log.zero_()
            progress.loss_count = 0
            if time.monotonic() - reported > SECONDS_BETWEEN_REPORTS or is_last:
                reported = time.monotonic()
                _report(progress, config.max_train_steps, loss, first, started)
        stopping = _any_process(stop.wanted.is_set(), accelerator)
        if progress.step % config.checkpointing_steps == 0 or is_last or stopping:
            progress.loss_sum, progress.seconds = float(since_log), time.monotonic() - started
            if accelerator.is_main_process:
                write_checkpoint(output, trained, progress, config.checkpoints_total_limit)
            accelerator.wait_for_everyone()
        if stopping and not is_last:
            raise Interrupted(f"stopped at step {progress.step} of {config.max_train_steps}; run again to go on.")
        if on_step is not None:
            on_step(progress.step)
    return progress


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
