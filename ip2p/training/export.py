"""The trained editor as a folder that diffusers' InstructPix2Pix pipelines load, Stable Diffusion's or XL's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    UNet2DConditionModel,
)

from ip2p.config import TrainingConfig
from ip2p.training import components
from ip2p.training.lora import CONV_IN_FILE, LORA_FILE, without_adapters, write_lora

CPU = torch.device("cpu")
INDEX = "model_index.json"


def build_pipeline(unet: UNet2DConditionModel, config: TrainingConfig, device: torch.device = CPU) -> Any:
    """The pipeline of a UNet, with the base's other parts in float32."""
    parts: dict[str, Any] = {
        "vae": components.load_vae(config, device),
        "text_encoder": components.load_text_encoder(config, device),
        "tokenizer": components.load_tokenizer(config),
        "unet": unet,
        "scheduler": components.load_sampler(config),
    }
    if not components.is_xl(config):
        nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionInstructPix2PixPipeline(**parts, **nothing)
    pipeline = StableDiffusionXLInstructPix2PixPipeline(
        **parts,
        text_encoder_2=components.load_second_text_encoder(config, device),
        tokenizer_2=components.load_tokenizer(config, "tokenizer_2"),
        force_zeros_for_empty_prompt=components.model_index(config).get("force_zeros_for_empty_prompt", True),
        add_watermarker=False,
        is_cosxl_edit=config.scale_condition_latents,
    )
    pipeline.register_to_config(is_cosxl_edit=config.scale_condition_latents)  # else it is lost when saved
    return pipeline


def write_editor(unet: UNet2DConditionModel, config: TrainingConfig, folder: Path) -> None:
    """Writes the pipeline beside its place and moves it there; its index comes last and vouches for the rest."""
    plain = without_adapters(unet) if config.use_lora else unet
    pipeline = build_pipeline(plain.to(CPU, memory_format=torch.contiguous_format), config)
    temporary = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.save_pretrained(temporary, safe_serialization=True)
    if config.use_lora:
        write_lora(unet, temporary)
    for name in ("tokenizer", "tokenizer_2"):
        _copy_vocabulary(config, temporary / name)
    _move(temporary, folder)


def _copy_vocabulary(config: TrainingConfig, folder: Path) -> None:
    """Some loaders read the tokenizer's older files, which its own writer leaves out."""
    for name in ("vocab.json", "merges.txt"):
        source = Path(config.pretrained_model_name_or_path).expanduser() / folder.name / name
        if folder.exists() and source.exists() and not (folder / name).exists():
            shutil.copyfile(source, folder / name)


def _move(new: Path, place: Path) -> None:
    """Part by part, since the place may hold checkpoints and logs too."""
    place.mkdir(parents=True, exist_ok=True)
    for stale in (INDEX, LORA_FILE, CONV_IN_FILE):
        (place / stale).unlink(missing_ok=True)
    parts = sorted(new.iterdir(), key=lambda path: path.name == INDEX)
    for part in parts:
        old = place / f".doomed-{part.name}"
        shutil.rmtree(old, ignore_errors=True)
        if (place / part.name).is_dir():
            os.replace(place / part.name, old)
        os.replace(part, place / part.name)
        shutil.rmtree(old, ignore_errors=True)
    new.rmdir()
