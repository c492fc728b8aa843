"""Writes checkpoints that are whole or not there: to a temporary folder, renamed, the oldest pruned after.

The names inside are those of diffusers' scripts: `checkpoint-N/{unet,unet_ema,optimizer.bin,scheduler.bin}`;
`state.json` holds the counters. There is no state of random generators: all chance is a function of the step.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import AutoModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ip2p.models.loading import from_source, return_freed_memory
from ip2p.training.draws import Drawing
from ip2p.training.lora import trained_weights, write_lora
from ip2p.training.optimizer import KINDS
from ip2p.training.sharding import states_like
from ip2p.training.trained import Trained

logger = logging.getLogger(__name__)

WEIGHTS = "diffusion_pytorch_model.safetensors"
DENOISER, AVERAGE = "unet", "unet_ema"
"""The folders in a checkpoint, as diffusers' scripts name them."""
TRAINED = "trained.safetensors"
"""Adapters and widened layer, bit for bit."""


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
    drawing: Drawing = "by_sample"
    """How the numbers of all steps are drawn, whichever version goes on."""

    def __post_init__(self) -> None:
        if self.drawing not in get_args(Drawing):
            names = " or ".join(get_args(Drawing))
            raise ValueError(f"drawing must be {names}, got {self.drawing!r}, which only a later version knows")


def find_checkpoints(output: Path) -> list[Path]:
    """Lists whole checkpoints, oldest first."""
    folders = [path for path in output.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in folders if (path / "scheduler.bin").exists()), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def write_checkpoint(
    output: Path,
    trained: Trained,
    progress: Progress,
    limit: int | None,
    decay: float = 0.9999,
    *,
    is_main: bool = True,
) -> Path:
    """Writes `checkpoint-<step>` and removes the oldest beyond the limit; called in every process."""
    path = output / f"checkpoint-{progress.step}"
    temporary = output / f".partial-{path.name}"
    if is_main:
        remove_folder(temporary)
        temporary.mkdir(parents=True)
    return_freed_memory()  # that of gradients: weights are copied as they are written
    _save_network(trained.denoiser, trained, temporary / DENOISER, is_main)
    if trained.average is not None:
        _save_network(trained.average, trained, temporary / AVERAGE, is_main)
    elif trained.averages_itself:
        with trained.averaged():
            _save_network(trained.denoiser, trained, temporary / AVERAGE, is_main)
    states = trained.states(is_main=is_main)
    if not is_main:
        return path
    if trained.average is not None:
        _note_ema(temporary / AVERAGE / "config.json", progress.step, decay)
    torch.save(states, temporary / "optimizer.bin")
    torch.save(trained.schedule.state_dict(), temporary / "scheduler.bin")
    if trained.scaler is not None:
        torch.save(trained.scaler.state_dict(), temporary / "scaler.pt")
    (temporary / "state.json").write_text(json.dumps(asdict(progress)))
    for written in filter(Path.is_file, temporary.rglob("*")):
        with written.open("rb") as file:
            os.fsync(file.fileno())
    remove_folder(path)
    os.replace(temporary, path)
    for old in find_checkpoints(output)[: -limit if limit else 0]:
        remove_folder(old)
    return path


def _save_network(network: nn.Module, trained: Trained, folder: Path, is_main: bool) -> None:
    whole = trained.whole(network, is_main=is_main)
    if whole is None:
        return
    if not trained.is_lora:
        whole.to(memory_format=torch.contiguous_format)
        whole.save_pretrained(folder, safe_serialization=True, max_shard_size="100GB")
        whole.to(memory_format=torch.channels_last)
        return
    folder.mkdir()
    weights = {name: value.contiguous().cpu() for name, value in trained_weights(whole, trained.denoiser).items()}
    save_file(weights, folder / TRAINED)
    write_lora(whole, trained.base, folder)


def _note_ema(path: Path, step: int, decay: float) -> None:
    """Adds what diffusers' `EMAModel` looks for beside its weights."""
    if path.exists():
        counters = {"decay": decay, "min_decay": 0.0, "optimization_step": step, "update_after_step": 0}
        shape = {"use_ema_warmup": False, "inv_gamma": 1.0, "power": 2 / 3}
        path.write_text(json.dumps(json.loads(path.read_text()) | counters | shape, indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that a checkpoint holds, read from its files, whose tensors are mapped into memory."""

    path: Path
    progress: Progress
    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any] | None

    @property
    def is_lora(self) -> bool:
        """Tells whether the weights are adapters and the widened layer alone."""
        return (self.path / DENOISER / TRAINED).exists()


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint, of diffusers' scripts too. ValueError if a file is missing or damaged."""

    def read(name: str, load: Callable[[Path], Any]) -> Any:
        return from_source(load, path / name, what=f"{path / name}", way_out="Resume from another checkpoint.")

    return Checkpoint(
        path,
        progress=read("state.json", _read_progress),
        weights=read(DENOISER, _read_weights),
        average=read(AVERAGE, _read_weights) if (path / AVERAGE).exists() else None,
        optimizer=read("optimizer.bin", _read_states),
        schedule=read("scheduler.bin", _read_states),
        scaler=read("scaler.pt", _read_states) if (path / "scaler.pt").exists() else None,
    )


def load_checkpoint(checkpoint: Checkpoint, trained: Trained) -> None:
    """Copies a checkpoint into what is trained, bit for bit. ValueError if it is of other weights than are trained."""
    path, average = checkpoint.path, checkpoint.average
    if trained.average is not None and average is None:
        logger.warning("%s has no averaged weights; the average starts from its weights", path)
    try:
        _load_network(trained.denoiser, trained, checkpoint, checkpoint.weights)
        if trained.average is not None:
            _load_network(trained.average, trained, checkpoint, average or checkpoint.weights)
        _check_optimizer(checkpoint, trained.optimizer)
        if trained.parts is None:
            trained.optimizer.load_state_dict(states_like(checkpoint.optimizer, trained.optimizer))
        else:
            trained.parts.put_states(checkpoint.optimizer)
        trained.schedule.load_state_dict(checkpoint.schedule)
        if trained.scaler is not None and checkpoint.scaler is not None:
            trained.scaler.load_state_dict(checkpoint.scaler)
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()[:40])
        way_out = "Resume with the settings that it was made with, or start in another folder."
        raise ValueError(f"{path} does not fit what is trained: {reason}. {way_out}") from error


def _check_optimizer(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    """Raises ValueError if a checkpoint's states are of another optimizer."""
    saved, own = (
        set(KINDS) & groups[0].keys() for groups in (checkpoint.optimizer["param_groups"], optimizer.param_groups)
    )
    if saved != own:
        raise ValueError(f"{checkpoint.path} was made by another optimizer. Give the --optim that it was trained with.")


def _load_network(network: nn.Module, trained: Trained, checkpoint: Checkpoint, weights: dict[str, Tensor]) -> None:
    """Copies saved weights into the denoiser or its average."""
    strict = not checkpoint.is_lora
    if trained.parts is None:
        unexpected = network.load_state_dict(weights, strict=strict).unexpected_keys
    else:  # checked on the skeleton, without copying
        shapes = {name: value.to("meta") for name, value in weights.items()}
        unexpected = trained.parts.skeleton.load_state_dict(shapes, strict=strict).unexpected_keys
    if unexpected:
        raise ValueError(f"{checkpoint.path} holds other adapters. Give the --rank that it was trained with.")
    if trained.parts is not None:
        trained.parts.put(trained.parts_of(network), weights)


def _read_progress(path: Path) -> Progress:
    """Reads the counters; a checkpoint of another script has only its step, and earlier versions drew by batch."""
    try:
        return Progress(**{"drawing": "by_batch"} | json.loads(path.read_text()))
    except FileNotFoundError:
        return Progress(step=_step_of(path.parent))


def _read_weights(folder: Path) -> dict[str, Tensor]:
    for file in (folder / TRAINED, folder / WEIGHTS):
        if file.exists():
            return load_file(file)
    if not folder.is_dir():
        raise FileNotFoundError("there is no such folder")
    shards: dict[str, Tensor] = AutoModel.from_pretrained(folder).state_dict()
    return shards


def _read_states(path: Path) -> dict[str, Any]:
    states: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return states


def resume(output: Path, trained: Trained, fresh: Progress, max_steps: int, name: str | None = "auto") -> Progress:
    """Resumes from the checkpoint of this name or path, from the `latest`, or at the start if `name` is None.

    `auto` is the newest one of the same training; it removes those of others. Both leave out damaged ones. ValueError
    if a named one is missing or damaged.
    """
    if name is None:
        return fresh
    if name in ("auto", "latest"):
        checkpoint = _newest(output, None if name == "latest" else fresh, max_steps)
    else:
        checkpoint = read_checkpoint(_find_named(output, name))
    if checkpoint is None:
        if name == "latest":
            logger.warning("%s has no whole checkpoint; training starts from its base", output)
        return fresh
    load_checkpoint(checkpoint, trained)
    path, progress = checkpoint.path, checkpoint.progress
    if progress.fingerprint != fresh.fingerprint:
        logger.warning("%s was made under other settings or on other data", path)
    if progress.num_processes != fresh.num_processes:
        logger.warning("%s was made by %d processes; the samples' order changes", path, progress.num_processes)
    logger.info("resuming from %s", path)
    return replace(progress, fingerprint=fresh.fingerprint, num_processes=fresh.num_processes)


def _newest(output: Path, same_as: Progress | None, max_steps: int) -> Checkpoint | None:
    """Reads the newest checkpoint that is whole; with `same_as`, removes newer ones of other trainings."""
    for path in reversed(find_checkpoints(output)):
        try:
            checkpoint = read_checkpoint(path)
        except ValueError as error:
            logger.warning("left out a damaged checkpoint: %s", error)
            continue
        progress = checkpoint.progress
        if same_as is None or (progress.fingerprint == same_as.fingerprint and progress.step <= max_steps):
            return checkpoint
        logger.warning("removing %s: it belongs to other settings or other data", path)
        remove_folder(path)
    return None


def _find_named(output: Path, name: str) -> Path:
    for path in (Path(name).expanduser(), output / name):
        if (path / "scheduler.bin").exists():
            return path
    names = ", ".join(path.name for path in find_checkpoints(output)) or "none"
    raise ValueError(f"there is no checkpoint {name}, also not in {output}. Available: {names}.")


def remove_folder(path: Path) -> None:
    """Removes a folder if it exists; it is renamed first, so that a kill never leaves half of it."""
    doomed = path.with_name(f".doomed-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    if path.exists():
        os.replace(path, doomed)
        shutil.rmtree(doomed)
