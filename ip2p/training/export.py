"""The trained editor as a folder that `StableDiffusionInstructPix2PixPipeline.from_pretrained` loads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel

from ip2p.config import TrainingConfig
from ip2p.training.components import load_sampler, load_text_encoder, load_tokenizer, load_vae

CPU = torch.device("cpu")


def write_editor(unet: UNet2DConditionModel, config: TrainingConfig, folder: Path) -> None:
    """Writes the pipeline beside its place and renames it, so that the folder is whole whenever it is there."""
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=load_vae(config, CPU),
        text_encoder=load_text_encoder(config, CPU),
        tokenizer=load_tokenizer(config),
        unet=unet.to(CPU, memory_format=torch.contiguous_format),
        scheduler=load_sampler(config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    temporary = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.save_pretrained(temporary, safe_serialization=True)
    _copy_vocabulary(config, temporary / "tokenizer")
    _replace(temporary, folder)


def _copy_vocabulary(config: TrainingConfig, folder: Path) -> None:
    """Some loaders read the tokenizer's older files, which its own writer leaves out."""
    for name in ("vocab.json", "merges.txt"):
        source = Path(config.pretrained_model_name_or_path).expanduser() / "tokenizer" / name
        if source.exists() and not (folder / name).exists():
            shutil.copyfile(source, folder / name)


def _replace(new: Path, place: Path) -> None:
    old = place.with_name(f".doomed-{place.name}")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)
    shutil.rmtree(old, ignore_errors=True)
