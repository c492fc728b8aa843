"""Checkpoints that are whole or not there: written to a temporary folder, renamed, the oldest pruned after.

The names inside are those of diffusers' scripts: `checkpoint-N/{unet,unet_ema,optimizer.bin,scheduler.bin}`;
`state.json` holds the counters. There is no state of random generators: all chance is a function of the step.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from torch.amp.grad_scaler import GradScaler

logger = logging.getLogger(__name__)

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(slots=True, kw_only=True)
class Progress:
    """The counters of a training."""

    fingerprint: str = ""
    num_processes: int = 1
    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    loss_sum: float = 0.0
    """Losses since the last entry of the loss log."""
    loss_count: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """All that a step changes."""

    unet: UNet2DConditionModel
    average: UNet2DConditionModel | None
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: GradScaler | None


def find_checkpoints(output: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [path for path in output.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if (path / "state.json").exists()), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def write_checkpoint(output: Path, trained: Trained, progress: Progress, limit: int | None) -> Path:
    """Writes `checkpoint-<step>` and removes the oldest beyond the limit."""
    path = output / f"checkpoint-{progress.step}"
    temporary = output / f".partial-{path.name}"
    _remove(temporary)
    temporary.mkdir(parents=True)
    save_unet(trained.unet, temporary / "unet")
    if trained.average is not None:
        save_unet(trained.average, temporary / "unet_ema")
    torch.save(trained.optimizer.state_dict(), temporary / "optimizer.bin")
    torch.save(trained.schedule.state_dict(), temporary / "scheduler.bin")
    if trained.scaler is not None:
        torch.save(trained.scaler.state_dict(), temporary / "scaler.pt")
    (temporary / "state.json").write_text(json.dumps(asdict(progress)))
    _flush(temporary)
    _remove(path)
    os.replace(temporary, path)
    for old in find_checkpoints(output)[: -limit if limit else 0]:
        _remove(old)
    return path


def save_unet(unet: UNet2DConditionModel, folder: Path) -> None:
    """Writes a UNet whose weights may lie in channels-last order."""
    unet.to(memory_format=torch.contiguous_format)
    unet.save_pretrained(folder, safe_serialization=True, max_shard_size="100GB")
    unet.to(memory_format=torch.channels_last)


def read_checkpoint(path: Path, trained: Trained) -> Progress:
    """Puts a checkpoint's weights and counters in place."""
    load_weights(trained.unet, path / "unet")
    if trained.average is not None:
        load_weights(trained.average, path / "unet_ema")
    trained.optimizer.load_state_dict(_read(path / "optimizer.bin"))
    trained.schedule.load_state_dict(_read(path / "scheduler.bin"))
    if trained.scaler is not None:
        trained.scaler.load_state_dict(_read(path / "scaler.pt"))
    return Progress(**json.loads((path / "state.json").read_text()))


def load_weights(network: nn.Module, folder: Path) -> None:
    """Copies saved weights into a network, bit for bit."""
    network.load_state_dict(load_file(folder / WEIGHTS))


def resume(output: Path, trained: Trained, fresh: Progress, max_steps: int) -> Progress:
    """Goes on from the newest checkpoint of the same training; those of others are removed."""
    for path in reversed(find_checkpoints(output)):
        state = json.loads((path / "state.json").read_text())
        if state["fingerprint"] != fresh.fingerprint or state["step"] > max_steps:
            logger.warning("removing %s: it belongs to other settings or other data", path)
            _remove(path)
            continue
        progress = read_checkpoint(path, trained)
        if progress.num_processes != fresh.num_processes:
            logger.warning("%s was made by %d processes; the samples' order changes", path, progress.num_processes)
            progress.num_processes = fresh.num_processes
        logger.info("going on from %s", path)
        return progress
    return fresh


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _remove(path: Path) -> None:
    """Removes a folder; the name goes first, so that a kill leaves no half checkpoint."""
    if path.exists():
        doomed = path.with_name(f".doomed-{path.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed)
