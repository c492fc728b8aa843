"""Trains any of the models in one resumable loop: seeded by step, averaged weights, regular checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ip2p.store import write_atomic

SECONDS_BETWEEN_CHECKPOINTS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """How long and how fast one model is trained."""

    num_steps: int
    learning_rate: float
    warmup_steps: int = 200
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    max_grad_norm: float = 1.0


def learning_rate_at(step: int, config: LoopConfig) -> float:
    """Returns a linear warm-up, then a cosine down to 2 % of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    return config.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def train(model: nn.Module, loss_at: Callable[[int], Tensor], config: LoopConfig, *, checkpoint: Path) -> nn.Module:
    """Trains `model` on `loss_at(step)` and returns it holding the averaged weights.

    `loss_at` must draw its batch from the step's number alone, so that a run that was killed and resumed sees the same
    batches as one that was not.
    """
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=_warming_ema(config.ema_decay), use_buffers=True)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    parts: dict[str, nn.Module | torch.optim.Optimizer] = {"model": model, "average": average, "optimizer": optimizer}
    start = _resume(checkpoint, parts)
    bar = tqdm(
        range(start, config.num_steps), initial=start, total=config.num_steps, desc=checkpoint.stem, mininterval=10
    )
    saved, smooth = time.monotonic(), None
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        average.update_parameters(model)
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS or step + 1 == config.num_steps:
            state = {name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}
            write_atomic(checkpoint, partial(torch.save, state))
            saved = time.monotonic()
    model.load_state_dict(average.module.state_dict())
    return model.eval()


def _warming_ema(decay: float) -> Callable[..., None]:
    """Returns an update of the average whose decay rises to `decay` within the first steps."""

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], num_averaged: Tensor | int) -> None:
        n = int(num_averaged)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, weight)
        else:  # counters, such as BatchNorm's
            torch._foreach_copy_(averages, currents)

    return update


def _resume(path: Path, parts: Mapping[str, nn.Module | torch.optim.Optimizer]) -> int:
    """Loads the parts from a checkpoint, if there is one, and returns the step to go on with."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])
