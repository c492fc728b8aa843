"""Where figures and pictures of a training are seen: tensorboard, wandb, comet, trackio, through accelerate."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
from accelerate import Accelerator

from ip2p.config import TrainingConfig, to_dict

MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet_ml": "comet_ml", "trackio": "trackio"}
PROJECT = "instruct-pix2pix"


def tracker_names(report_to: str) -> list[str]:
    """The trackers that are asked for. ValueError for one that is unknown or not installed."""
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
    """Tells the trackers the settings; there is no secret among them."""
    values = to_dict(config).items()
    plain = {name: value if isinstance(value, int | float | str) else str(value) for name, value in values}
    accelerator.init_trackers(PROJECT, config=plain)


def show_images(accelerator: Accelerator, name: str, images: Mapping[str, Any], step: int) -> None:
    """Pictures by caption, to tensorboard, wandb and comet."""
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
