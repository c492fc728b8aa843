"""Validates a training on the way: edits of given pictures, and the loss on pairs that it does not see.

The main process validates and the others wait; if weights are split, it does so on a copy put together for it. The
loss is that of fixed noise at fixed timesteps, by quarters of the noise schedule, so that its course is the model's and
not chance's. Figures and pictures go to tensorboard, wandb, comet or trackio, through accelerate.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.utils import load_image
from PIL import Image
from torch import Tensor, nn

from ip2p.config import TrainingConfig, to_dict
from ip2p.images import check_size, fitted_size, open_picture
from ip2p.models.architecture import Architecture
from ip2p.models.noise import NoiseProcess
from ip2p.sources.files import read_json_file
from ip2p.training.cache import LatentCache
from ip2p.training.draws import draw_step
from ip2p.training.trainer import Trainer

logger = logging.getLogger(__name__)

NUM_STEPS = 20
IMAGE_GUIDANCE, GUIDANCE = 1.5, 7.0
"""Those of diffusers' scripts."""
QUARTERS = 4


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and what to do to it."""

    name: str
    image: Image.Image
    edit_prompt: str


@dataclass(frozen=True, slots=True)
class Validation:
    """When to validate, and on what; it is the loop's `Watcher`."""

    config: TrainingConfig
    accelerator: Accelerator
    output: Path
    every: int
    """Optimizer steps between validations."""
    num_steps: int
    pictures: Sequence[Picture] = ()
    held_out: LatentCache | None = None

    def log(self, values: dict[str, float], step: int) -> None:
        """Logs figures to the trackers."""
        self.accelerator.log(values, step=step)

    def after_step(self, trainer: Trainer, step: int) -> None:
        """Validates at its steps and after the last."""
        due = step == self.num_steps or step % self.every == 0
        if not due or not (self.pictures or self.held_out is not None):
            return
        trained = trainer.trained
        network = trained.whole(trained.average or trained.denoiser, is_main=self.accelerator.is_main_process)
        if network is not None:
            if trained.parts is not None:
                network.to(self.accelerator.device)
            was_training = network.training
            network.eval()
            with torch.no_grad():
                self._measure(trainer, network, step)
                self._show(trainer.base, network, step)
            network.train(was_training)
        self.accelerator.wait_for_everyone()

    def _measure(self, trainer: Trainer, network: nn.Module, step: int) -> None:
        if self.held_out is None:
            return
        device = next(network.parameters()).device
        losses = held_out_losses(trainer, network, self.held_out, device)
        self.log(losses, step)
        with (self.output / "validation.jsonl").open("a") as file:
            file.write(json.dumps({"step": step} | {name: round(value, 6) for name, value in losses.items()}) + "\n")
        logger.info("step %d: held-out loss %.4f", step, losses["held_out_loss"])

    def _show(self, base: Architecture, network: nn.Module, step: int) -> None:
        if not self.pictures:
            return
        device = self.accelerator.device
        place = next(network.parameters()).device
        pipeline = base.build_editor(network.to(device), self.config, device)
        pipeline.set_progress_bar_config(disable=True)
        folder = self.output / "validation_images"
        folder.mkdir(exist_ok=True)
        images = {}
        with self.accelerator.autocast():
            for number, (picture, seed) in enumerate(self._edits()):
                edited = _edit(pipeline, base, picture, seed)
                images[f"{picture.name}: {picture.edit_prompt} ({seed})"] = edited
                edited.save(folder / f"step_{step}_val_img_{number}.png")
        show_images(self.accelerator, "validation", images, step)
        network.to(place)

    def _edits(self) -> Iterator[tuple[Picture, int]]:
        for picture in self.pictures:
            for number in range(self.config.num_validation_images):
                yield picture, self.config.seed + number


def _edit(pipeline: Any, base: Architecture, picture: Picture, seed: int) -> Image.Image:
    options = {"num_inference_steps": NUM_STEPS, "image_guidance_scale": IMAGE_GUIDANCE, "guidance_scale": GUIDANCE}
    options |= base.call_options(*picture.image.size)
    generator = torch.Generator().manual_seed(seed)
    edited: Image.Image = pipeline(picture.edit_prompt, image=picture.image, generator=generator, **options).images[0]
    return edited


def read_pictures(config: TrainingConfig) -> list[Picture]:
    """Reads the pictures to edit. ValueError, before the training starts, for one that cannot be read."""
    edits = []
    if config.val_image_url_or_path and config.validation_prompt:
        edits.append((config.val_image_url_or_path, config.validation_prompt))
    elif config.val_image_url_or_path or config.validation_prompt:
        raise ValueError(
            "a validation needs both an image and an instruction. "
            "Give --val_image_url_or_path as well as --validation_prompt."
        )
    if config.validation_file:
        edits += _read_file(Path(config.validation_file).expanduser())
    return [Picture(Path(source).name, _read_image(source, config.resolution), prompt) for source, prompt in edits]


def _read_file(path: Path) -> list[tuple[str, str]]:
    try:
        edits = [(str(row["image"]), str(row["edit_prompt"])) for _, row in read_json_file(path)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold JSON lines of `image` and `edit_prompt`: {error}") from error
    beside = [path.parent / image for image, _ in edits]
    return [
        (str(near) if near.exists() else image, prompt) for near, (image, prompt) in zip(beside, edits, strict=True)
    ]


def _read_image(source: str, resolution: int) -> Image.Image:
    """Reads an RGB image on white, the short side near `resolution`, both sides multiples of 8."""
    try:
        image: Image.Image = load_image(source, convert_method=open_picture)
    except Exception as error:  # the network and codecs raise many kinds
        raise ValueError(f"the validation image {source} cannot be read: {error}") from error
    size = fitted_size(image.size, resolution, multiple=8)
    check_size(size)
    return image.resize(size, Image.Resampling.LANCZOS)


def held_out_losses(
    trainer: Trainer, network: nn.Module, held_out: LatentCache, device: torch.device
) -> dict[str, float]:
    """Returns the mean loss over the held-out pairs, all in all and by quarters of the timesteps."""
    noise = trainer.noise.to(device)
    size = trainer.config.train_batch_size
    by_quarter: list[list[Tensor]] = [[] for _ in range(QUARTERS)]
    for start in range(0, len(held_out), size):
        samples = list(range(start, min(start + size, len(held_out))))
        for quarter, losses in enumerate(by_quarter):
            losses.append(_losses(trainer, network, noise, held_out, samples, quarter, device))
    total = noise.num_timesteps // QUARTERS
    means = [float(torch.cat(losses).mean()) for losses in by_quarter]
    names = [f"held_out_loss_{total * number}_{total * (number + 1)}" for number in range(QUARTERS)]
    return {"held_out_loss": sum(means) / QUARTERS, **dict(zip(names, means, strict=True))}


def _losses(
    trainer: Trainer,
    network: nn.Module,
    process: NoiseProcess,
    held_out: LatentCache,
    samples: list[int],
    quarter: int,
    device: torch.device,
) -> Tensor:
    """Returns (N,) losses, nothing dropped."""
    num_timesteps = process.num_timesteps
    chances = torch.zeros(num_timesteps)
    chances[num_timesteps * quarter // QUARTERS : num_timesteps * (quarter + 1) // QUARTERS] = 1.0
    shape = torch.Size((len(samples), *held_out.latent_shape))
    draws = draw_step(shape, chances, "held-out", trainer.config.seed, samples[0], quarter)
    batch = held_out.take(samples, [False] * len(samples)).to(device)
    latents = trainer.latents.scaled(batch.mean)
    noise, timesteps = draws.noise.to(device), draws.timesteps.to(device)
    with trainer.accelerator.autocast():
        noised = process.noised(latents, noise, timesteps)
        condition = trainer.condition_of(batch)
        prediction = trainer.predict(network, noised, timesteps, batch.texts, condition, batch.sizes)
    return process.errors(prediction, latents, noise, timesteps).cpu()


MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet_ml": "comet_ml", "trackio": "trackio"}
PROJECT = "instruct-pix2pix"


def tracker_names(report_to: str) -> list[str]:
    """Lists the trackers to report to. ValueError for one that is unknown or not installed."""
    names = [name.strip() for name in report_to.split(",") if name.strip()]
    if names == ["all"]:
        return [name for name in MODULES if _is_installed(name)]
    if names in ([], ["none"]):
        return []
    for name in names:
        if name not in MODULES:
            raise ValueError(f"report_to must be of {', '.join(MODULES)}, all or none, got {name}.")
        if not _is_installed(name):
            raise ValueError(f"report_to asks for {name}, which is not installed. Run: pip install {MODULES[name]}")
    return names


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(MODULES[name]) is not None


def start_trackers(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Starts the trackers with the settings, which hold no secret."""
    values = to_dict(config).items()
    plain = {name: value if isinstance(value, int | float | str) else str(value) for name, value in values}
    accelerator.init_trackers(PROJECT, config=plain)


def show_images(accelerator: Accelerator, name: str, images: Mapping[str, Any], step: int) -> None:
    """Shows pictures by caption in tensorboard, wandb and comet."""
    if not images:
        return
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            for caption, image in images.items():
                tracker.writer.add_image(f"{name}/{caption}", np.asarray(image), step, dataformats="HWC")
        elif tracker.name == "wandb":
            import wandb

            tracker.log({name: [wandb.Image(image, caption=caption) for caption, image in images.items()]}, step=step)
        elif tracker.name == "comet_ml":
            for caption, image in images.items():
                tracker.writer.log_image(image, name=f"{name}/{caption}", step=step)
