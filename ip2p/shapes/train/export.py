"""Writes the trained models in the formats of diffusers, open_clip and transformers, and the captions beside them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ip2p.shapes.language import draw_caption
from ip2p.shapes.scene import draw_scene
from ip2p.shapes.train.unet import new_sampler


def write_stable_diffusion(
    folder: Path, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> None:
    """Writes the folder that `StableDiffusionPipeline.from_pretrained` loads; the UNet in half precision."""
    for model in (vae, unet):
        model.register_to_config(_name_or_path="")  # else the folder that it was loaded from
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet.to(dtype=torch.float16, memory_format=torch.contiguous_format),
        scheduler=new_sampler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):
        source = Path(str(tokenizer.name_or_path)) / name
        if source.exists():
            shutil.copyfile(source, folder / "tokenizer" / name)


def write_captions(path: Path, *, seed: int, num: int) -> None:
    """Draws distinct captions, one a line, for the default run."""
    rng = random.Random(f"{seed} captions")
    captions: dict[str, None] = {}
    while len(captions) < num:
        captions[draw_caption(rng, draw_scene(rng))] = None
    path.write_text("".join(f"{caption}\n" for caption in captions))
