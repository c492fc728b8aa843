"""Validates a training as it runs: edits given pictures, and measures the loss on pairs that are not trained on.

The main process validates and the others wait; if weights are split, it uses a copy put together for it. The loss has
fixed noise at fixed timesteps, by quarters of the noise schedule, so that it changes with the model alone. Figures and
pictures go to tensorboard, wandb, comet or trackio, through accelerate.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import load_image
from PIL import Image
from torch import Tensor, nn

from ip2p.config import TrainingConfig
from ip2p.images import check_size, fitted_size, open_picture
from ip2p.models.architecture import size_step
from ip2p.sources.edits import read_edits
from ip2p.training.cache import LatentCache
from ip2p.training.draws import draw_step
from ip2p.training.trackers import show_images
from ip2p.training.trainer import Trainer

logger = logging.getLogger(__name__)

SETTINGS = {"num_inference_steps": 20, "image_guidance_scale": 1.5, "guidance_scale": 7.0}
"""The settings of diffusers' scripts; a pipeline gets those that it takes."""
QUARTERS = 4


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and what to do to it."""

    name: str
    image: Image.Image
    edit_prompt: str


@dataclass(frozen=True, slots=True)
class Validation:
    """When to validate, and on what."""

    output: Path
    every: int
    """Optimizer steps between validations."""
    num_steps: int
    pictures: Sequence[Picture] = ()
    held_out: LatentCache | None = None

    def is_due(self, step: int) -> bool:
        """Tells whether to validate after a step: at its steps and after the last, if there is something to look at."""
        is_its_step = step == self.num_steps or step % self.every == 0
        return is_its_step and bool(self.pictures or self.held_out is not None)

    def run(self, trainer: Trainer, step: int) -> None:
        """Validates; every process has to take part."""
        with trainer.trained.averaged():
            self._validate(trainer, step)
        trainer.accelerator.wait_for_everyone()

    def _validate(self, trainer: Trainer, step: int) -> None:
        accelerator, trained = trainer.accelerator, trainer.trained
        network = trained.editor(is_main=accelerator.is_main_process)
        if network is not None:
            if trained.parts is not None:
                network.to(accelerator.device)
            was_training = network.training
            network.eval()
            with torch.no_grad():
                if self.held_out is not None:
                    self._measure(trainer, network, self.held_out, step)
                if self.pictures:
                    self._show(trainer, network, step)
            network.train(was_training)

    def _measure(self, trainer: Trainer, network: nn.Module, held_out: LatentCache, step: int) -> None:
        losses = held_out_losses(trainer, network, held_out)
        trainer.accelerator.log(losses, step=step)
        with (self.output / "validation.jsonl").open("a") as file:
            file.write(json.dumps({"step": step} | {name: round(value, 6) for name, value in losses.items()}) + "\n")
        logger.info("step %d: held-out loss %.4f", step, losses["held_out_loss"])

    def _show(self, trainer: Trainer, network: ModelMixin, step: int) -> None:
        config, device = trainer.config, trainer.accelerator.device
        place = next(network.parameters()).device
        pipeline = trainer.base.build_editor(network.to(device), config, device)
        pipeline.set_progress_bar_config(disable=True)
        settings = settings_for(pipeline, config)
        folder = self.output / "validation_images"
        folder.mkdir(exist_ok=True)
        images = {}
        seeds = range(config.seed, config.seed + config.num_validation_images)
        with trainer.accelerator.autocast():
            for number, (picture, seed) in enumerate(itertools.product(self.pictures, seeds)):
                image = fit_to_step(picture.image, size_step(pipeline, trainer.base))
                options = trainer.base.call_options(image, picture.edit_prompt) | settings
                edited = pipeline(**options, generator=torch.Generator().manual_seed(seed)).images[0]
                images[f"{picture.name}: {picture.edit_prompt} ({seed})"] = edited
                edited.save(folder / f"step_{step}_val_img_{number}.png")
        show_images(trainer.accelerator, images, step)
        network.to(place)


def settings_for(pipeline: DiffusionPipeline, config: TrainingConfig) -> dict[str, float]:
    """Returns the settings of an edit that a pipeline takes."""
    taken, settings = signature(pipeline.__call__).parameters, dict[str, float](SETTINGS)
    if config.max_sequence_length is not None:
        settings["max_sequence_length"] = config.max_sequence_length
    return {name: value for name, value in settings.items() if name in taken}


def fit_to_step(image: Image.Image, step: int) -> Image.Image:
    """Returns an image whose sides are multiples of `step`, as large or a little smaller."""
    size = (max(step, image.width // step * step), max(step, image.height // step * step))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


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
    rows = read_edits(path)
    return [(str(row.picture("image") or row.text("image")), row.text("edit_prompt")) for row in rows]


def _read_image(source: str, resolution: int) -> Image.Image:
    """Reads an RGB image on white, the short side near `resolution`, both sides multiples of 8."""
    try:
        image: Image.Image = load_image(source, convert_method=open_picture)
        size = fitted_size(image.size, resolution, multiple=8)
        check_size(size)
    except Exception as error:  # the network and codecs raise many kinds
        raise ValueError(f"the validation image {source} cannot be read: {error}") from error
    return image.resize(size, Image.Resampling.LANCZOS)


def held_out_losses(trainer: Trainer, network: nn.Module, held_out: LatentCache) -> dict[str, float]:
    """Returns the mean loss over the held-out pairs, nothing dropped: in total and by quarters of the timesteps."""
    device = next(network.parameters()).device
    process, size, seed = trainer.noise.to(device), trainer.config.train_batch_size, trainer.config.seed
    num_timesteps = process.num_timesteps
    by_quarter: list[list[Tensor]] = [[] for _ in range(QUARTERS)]
    for start, (quarter, losses) in itertools.product(range(0, len(held_out), size), enumerate(by_quarter)):
        samples = list(range(start, min(start + size, len(held_out))))
        chances = torch.zeros(num_timesteps)
        chances[num_timesteps * quarter // QUARTERS : num_timesteps * (quarter + 1) // QUARTERS] = 1.0
        shape = torch.Size((len(samples), *held_out.latent_shape))
        draws = draw_step(shape, chances, "held-out", seed, start, quarter)
        batch = held_out.take(samples, [False] * len(samples)).to(device)
        latents = trainer.latents.scaled(batch.mean)
        noise, timesteps = draws.noise.to(device), draws.timesteps.to(device)
        with trainer.accelerator.autocast():
            noised, condition = process.noised(latents, noise, timesteps), trainer.condition_of(batch)
            prediction = trainer.predict(network, noised, timesteps, batch.texts, condition, batch.sizes)
        losses.append(process.errors(prediction, latents, noise, timesteps).cpu())
    width = num_timesteps // QUARTERS
    means = [float(torch.cat(losses).mean()) for losses in by_quarter]
    names = [f"held_out_loss_{width * number}_{width * (number + 1)}" for number in range(QUARTERS)]
    return {"held_out_loss": sum(means) / QUARTERS, **dict(zip(names, means, strict=True))}
