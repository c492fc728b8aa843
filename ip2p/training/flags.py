"""The command line of a training: every flag of diffusers' InstructPix2Pix scripts, read into the one config.

The flags are the fields of `TrainingJob`, and so are their names; what is left out is what those scripts take. A flag
that differs between the two scripts is accepted in both spellings.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import tyro

from ip2p.config import DIFFUSERS_DEFAULTS, TrainingConfig, TrainingJob
from ip2p.config.files import overlay

logger = logging.getLogger(__name__)

OTHER_SPELLINGS = {"val_image_url": "val_image_url_or_path"}
ANY = "?"


def parse(arguments: Sequence[str]) -> TrainingJob:
    """Flags to a job. `--config FILE` starts from the fields of a JSON file instead of the scripts' defaults.

    ValueError for settings that cannot be; SystemExit for flags that are not known, and for `--help`.
    """
    own, words = _own_flags().parse_known_args(_canonical(arguments))
    base = _read(own.config) if own.config else TrainingJob(train_data_dir=ANY, **DIFFUSERS_DEFAULTS)  # type: ignore[arg-type]
    if own.hub_token:
        logger.warning("a token on the command line is seen by others on this machine; set HF_TOKEN instead")
        os.environ["HF_TOKEN"] = own.hub_token  # where the hub's client looks; it is in no config and in no file
    job = tyro.cli(TrainingJob, prog="python -m ip2p.training", args=words, default=base)
    if job.data == ANY:
        raise ValueError("no data to train on. Give --dataset_name or --train_data_dir.")
    return job


def _canonical(arguments: Sequence[str]) -> list[str]:
    """`--name=value` and `--name value` as the latter, each flag in our spelling."""
    words: list[str] = []
    for word in arguments:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            words.append(word)
            continue
        plain = name.replace("-", "_")
        words += [f"--{OTHER_SPELLINGS.get(plain, plain)}", *([value] if equals else [])]
    return words


def _own_flags() -> argparse.ArgumentParser:
    """What is no field of a job: where to start from, a secret, and what the launcher's environment says."""
    parser = argparse.ArgumentParser(prog="python -m ip2p.training", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--hub_token")
    parser.add_argument("--local_rank")
    return parser


def _read(path: Path) -> TrainingJob:
    """The job of a JSON file: its fields, or the `training` section of a run's config.json."""
    try:
        values = json.loads(path.read_text())
        found = overlay(TrainingJob(train_data_dir=ANY), values.get("training", values))
    except (OSError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no config of a training: {error}") from error
    job: TrainingJob = found
    return job


def job_of(config: TrainingConfig, data: str, *, output: Path, export: Path) -> TrainingJob:
    """The training of a run: into its folders, going on where the same settings left off."""
    knobs: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(TrainingConfig)}
    knobs |= {"train_data_dir": data, "output_dir": str(output), "export_dir": str(export)}
    return TrainingJob(**knobs, resume_from_checkpoint="auto")
