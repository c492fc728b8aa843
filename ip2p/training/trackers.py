"""Trackers that a training reports to through accelerate: which there are, whether they can be used, and pictures."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ip2p.config import TrainingConfig, to_dict
from ip2p.console import first_line

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "instruct-pix2pix"


def _check_wandb() -> None:
    import wandb

    try:
        if wandb.setup().settings.mode != "online" or wandb.login(prompt=False):
            return
        reason = "no key was found"
    except wandb.Error as error:
        reason = first_line(error).rstrip(".")
    finally:
        wandb.teardown()
    way_out = "Run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline."
    raise ValueError(f"report_to asks for wandb, which cannot log in: {reason}. {way_out}")


def _check_comet() -> None:
    files = [os.environ.get("COMET_CONFIG", ".comet.config"), "~/.comet.config"]
    named = any(name in os.environ for name in ("COMET_API_KEY", "COMET_START_ONLINE", "COMET_START_MODE"))
    if not named and not any(Path(file).expanduser().is_file() for file in files):
        way_out = "Run `comet login` or set COMET_API_KEY."
        raise ValueError(f"report_to asks for comet_ml, for which no key was found. {way_out}")


TRACKERS: Mapping[str, Callable[[], None]] = {
    "tensorboard": lambda: None,
    "wandb": _check_wandb,
    "comet_ml": _check_comet,
    "trackio": lambda: None,
}
"""The trackers, named as their packages, each with the check of its login."""


def check_trackers(report_to: str, *, can_ask: bool = False) -> list[str]:
    """Lists the trackers to report to. ValueError for one that is unknown, not installed or not logged in.

    If it `can_ask`, a tracker asks for its login itself.
    """
    names = [name.strip() for name in report_to.split(",") if name.strip()]
    if names == ["all"]:
        names = [name for name in TRACKERS if _is_installed(name)]
    if names == ["none"]:
        return []
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"report_to must be of {', '.join(TRACKERS)}, all or none, got {name}.")
        if not _is_installed(name):
            raise ValueError(f"report_to asks for {name}, which is not installed. Run: pip install {name}")
        if not can_ask:
            TRACKERS[name]()
    return names


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def start_trackers(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Starts the trackers with the settings, which hold no secret."""
    values = to_dict(config).items()
    plain = {name: value if isinstance(value, int | float | str) else str(value) for name, value in values}
    accelerator.init_trackers(PROJECT, config=plain)


def show_images(accelerator: Accelerator, images: Mapping[str, Image.Image], step: int) -> None:
    """Shows pictures by caption in tensorboard, wandb and comet."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            for caption, image in images.items():
                tracker.writer.add_image(f"validation/{caption}", np.asarray(image), step, dataformats="HWC")
        elif tracker.name == "wandb":
            import wandb

            tracker.log(
                {"validation": [wandb.Image(image, caption=caption) for caption, image in images.items()]}, step=step
            )
        elif tracker.name == "comet_ml":
            for caption, image in images.items():
                tracker.writer.log_image(image, name=f"validation/{caption}", step=step)
