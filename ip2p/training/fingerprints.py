"""Hashes what decides a training's weights: settings, the base model's content and the data's."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from ip2p.config import TrainingConfig, fingerprint, to_dict
from ip2p.config.fields import RESULT_FREE, WEIGHTS_FREE, names_with
from ip2p.sources.content import Source, fingerprint_files, later_contents, loaded_files
from ip2p.training.data import find_files


def model_fingerprint(config: TrainingConfig) -> str:
    """Hashes a base model: by its files if they are local, else by name and revision."""
    folder = Path(config.pretrained_model_name_or_path).expanduser()
    if not folder.is_dir():
        return fingerprint(config.pretrained_model_name_or_path, config.revision, config.variant)
    return fingerprint_files(loaded_files(folder))


def models_of(config: TrainingConfig) -> list[Source]:
    """Returns the models whose content `model_fingerprint` leaves out: a base on the hub and a separate autoencoder."""
    base, vae = config.pretrained_model_name_or_path, config.pretrained_vae_model_name_or_path
    models = [Source("training.pretrained_vae_model_name_or_path", vae)] if vae else []
    if not Path(base).expanduser().is_dir():
        models.append(Source("training.pretrained_model_name_or_path", base, config.revision))
    return models


def sources_of_training(config: TrainingConfig, data: str) -> list[Source]:
    """Returns the models and the data that `training_fingerprint` knows by name."""
    further = [("training.more_data", each) for each in config.more_data]
    named = [(setting, each) for setting, each in (("data", data), *further) if not find_files(each)]
    return models_of(config) + [Source(setting, each, is_data=True) for setting, each in named]


def training_fingerprint(training: TrainingConfig, data: str, output: Path | None = None) -> str:
    """Hashes what decides the trained weights: settings, the base model's content and the data's.

    What is known by name enters if its content has changed since it was noted in the folder `output`.
    """
    return fingerprint(resume_fingerprint(training, data, output), training.max_train_steps)


def resume_fingerprint(training: TrainingConfig, data: str, output: Path | None = None) -> str:
    """Hashes the same for a checkpoint: under a constant learning rate a training may be made longer."""
    free = names_with(TrainingConfig, RESULT_FREE, WEIGHTS_FREE)
    if training.lr_scheduler.startswith("constant"):
        free |= {"max_train_steps"}
    names = {field.name for field in fields(TrainingConfig)} - free
    knobs = {name: value for name, value in to_dict(training).items() if name in names}
    contents = [
        fingerprint_files(files) if (files := find_files(each)) else each for each in (data, *training.more_data)
    ]
    later = later_contents(output, sources_of_training(training, data)) if output else []
    return fingerprint(knobs, model_fingerprint(training), *contents, *later)
