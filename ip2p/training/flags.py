"""Parses the flags of a training: every flag of diffusers' InstructPix2Pix scripts.

The flags are the fields of `TrainingJob` and default to what the scripts default to. A flag that the two scripts spell
differently is accepted in both spellings.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tyro

from ip2p.config import DIFFUSERS_DEFAULTS, TrainingConfig, TrainingJob
from ip2p.config.files import overlay

logger = logging.getLogger(__name__)

OTHER_SPELLING = re.compile("^--val[-_]image[-_]url(?=$|=)")
"""Flag of the Stable Diffusion XL script for `--val_image_url_or_path`."""
UNKNOWN_DATA = "?"


@dataclass(frozen=True)
class NotSettings:
    """Flags that are not fields of a job: a file to start from, a secret, and what launchers add."""

    config: Path | None = None
    hub_token: str | None = None
    local_rank: str | None = None


def parse(arguments: Sequence[str]) -> TrainingJob:
    """Parses flags to a job. `--config FILE` starts from a JSON file of its fields instead of the scripts' defaults.

    ValueError for invalid settings; SystemExit for unknown flags and for `--help`.
    """
    words = [OTHER_SPELLING.sub("--val_image_url_or_path", word) for word in arguments]
    own, words = tyro.cli(NotSettings, args=words, return_unknown_args=True, add_help=False)
    base = _read(own.config) if own.config else TrainingJob(train_data_dir=UNKNOWN_DATA, **DIFFUSERS_DEFAULTS)  # type: ignore[arg-type]
    if own.hub_token:
        logger.warning("a token on the command line is visible to others on this machine; set HF_TOKEN instead")
        os.environ["HF_TOKEN"] = own.hub_token  # where the hub's client looks; it is in no config and in no file
    job = tyro.cli(TrainingJob, prog="python -m ip2p.training", args=words, default=base)
    if job.data == UNKNOWN_DATA:
        raise ValueError("no data to train on. Give --dataset_name or --train_data_dir.")
    return job


def _read(path: Path) -> TrainingJob:
    """Reads the job of a JSON file: its fields, or the `training` section of a run's config.json."""
    try:
        values = json.loads(path.read_text())
        return overlay(TrainingJob(train_data_dir=UNKNOWN_DATA), values.get("training", values))
    except (OSError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a valid training config: {error}") from error


def job_of(config: TrainingConfig, data: str, *, output: Path, export: Path) -> TrainingJob:
    """Returns the training of a run: into its folders, resumed from where the same settings left off."""
    knobs: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(TrainingConfig)}
    knobs |= {"train_data_dir": data, "output_dir": str(output), "export_dir": str(export)}
    return TrainingJob(**knobs, resume_from_checkpoint="auto")
