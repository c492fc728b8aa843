"""Trains the tiny base models from scratch and prints their figures: `python -m ip2p.shapes.train OUT`."""

from __future__ import annotations

import json
import logging
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ip2p.models.loading import keep_freed_memory, resolve_device
from ip2p.presets import shapes
from ip2p.shapes.language import draw_caption
from ip2p.shapes.scene import draw_scene
from ip2p.shapes.train import clip as clip_recipe
from ip2p.shapes.train.language_model import train_language_model, write_language_tokenizer
from ip2p.shapes.train.measure import all_figures, text_to_image_accuracy
from ip2p.shapes.train.text import train_text_tower, write_tokenizer
from ip2p.shapes.train.transformer import FLOW_RENDERING, train_stable_diffusion_3
from ip2p.shapes.train.unet import distil_guidance, new_sampler, train_unet
from ip2p.shapes.train.vae import narrow_posterior, train_vae, tune_decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Trains the tiny base models of the shapes domain from scratch; run it again to resume after an interrupt."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder for the models."""
    work: Path = Path(".cache/shapes-train")
    """Folder for checkpoints."""
    seed: int = 0
    """Seed of all draws."""
    device: str = "auto"
    """Where to train."""
    vae_steps: int = 1500
    """Steps of the autoencoder."""
    text_steps: int = 500
    """Steps of the text tower."""
    clip_steps: int = 3400
    """Steps of CLIP's picture tower."""
    judge_steps: int = 3000
    """Steps of the picture tower of the CLIP that judges edits; its text tower takes a sixth as many."""
    unet_steps: int = 14500
    """Steps of the denoiser."""
    guidance_steps: int = 5000
    """Steps of the denoiser's second training, in which it learns its own guidance."""
    decoder_steps: int = 1000
    """Steps of the decoder's second training."""
    transformer_steps: int = 25000
    """Steps of the flow transformer; its second text tower takes 500."""
    language_steps: int = 16000
    """Steps of the language model."""
    num_captions: int = 1700
    """Number of captions for the default run."""
    only_transformer: bool = False
    """Train a small Stable Diffusion 3 instead, on the autoencoder and the text tower in the folder."""
    compile: bool = False
    """Compile the flow transformer for its training: faster, but it needs a C++ compiler and ends in other bits."""
    measure: bool = True
    """Print the figures at the end."""


def main(recipe: Recipe) -> None:
    """Trains what is not trained yet, writes the folders and prints the figures."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_freed_memory()
    work, seed = recipe.work, recipe.seed
    work.mkdir(parents=True, exist_ok=True)
    recipe.out.mkdir(parents=True, exist_ok=True)
    device = resolve_device(recipe.device)
    if not recipe.only_transformer:
        train_models(recipe, device)
        figures = all_figures(recipe.out, shapes()) if recipe.measure else {}
    else:
        folder = recipe.out / "stable-diffusion-3"
        train_stable_diffusion_3(
            folder,
            recipe.out / "stable-diffusion",
            work / "stable-diffusion-3",
            seed=seed,
            num_steps=recipe.transformer_steps,
            device=device,
            compiled=recipe.compile,
        )
        figures = {"text_to_image": text_to_image_accuracy(folder, FLOW_RENDERING)} if recipe.measure else {}
    if recipe.measure:
        print(json.dumps(figures, indent=2))


def train_models(recipe: Recipe, device: str) -> None:
    """Trains every model but the flow transformer and draws the captions of the default run."""
    work, seed = recipe.work, recipe.seed
    train_pictures(recipe, device)
    tokenizer = write_language_tokenizer(recipe.out / "language-model")
    judge_tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    judge = clip_recipe.train_judge(
        work / "judge", judge_tokenizer, seed=seed + 1, num_steps=recipe.judge_steps, device=device
    )
    clip_recipe.write_clip(recipe.out / "judge", judge, judge_tokenizer, clip_recipe.VIT)
    model = train_language_model(work, tokenizer, seed=seed, num_steps=recipe.language_steps, device=device)
    model.save_pretrained(recipe.out / "language-model")
    write_captions(recipe.out / "captions.txt", seed=seed, num=recipe.num_captions)


def train_pictures(recipe: Recipe, device: str) -> None:
    """Trains autoencoder, text tower, CLIP and denoiser, in the order in which they need each other."""
    work, seed = recipe.work, recipe.seed
    (work / "tokenizer").mkdir(exist_ok=True)
    write_tokenizer(work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    vae: AutoencoderKL = train_vae(work, seed=seed, num_steps=recipe.vae_steps, device=device)
    torch.manual_seed(seed)
    clip = clip_recipe.new_clip(len(tokenizer)).to(device)
    train_text_tower(work, clip, tokenizer, seed=seed, num_steps=recipe.text_steps, device=device)
    text_encoder: CLIPTextModel = clip_recipe.text_encoder_of(clip, tokenizer)
    torch.nn.Module.to(text_encoder, device)
    clip_recipe.train_clip(work, clip, tokenizer, seed=seed, num_steps=recipe.clip_steps, device=device)
    clip_recipe.write_clip(recipe.out / "clip", clip.cpu().eval(), tokenizer)
    unet = train_unet(work, vae, text_encoder, tokenizer, seed=seed, num_steps=recipe.unet_steps, device=device)
    models = (unet, vae, text_encoder, tokenizer)
    distil_guidance(work, *models, seed=seed, num_steps=recipe.guidance_steps, device=device)
    narrow_posterior(tune_decoder(work, vae, seed=seed, num_steps=recipe.decoder_steps, device=device))
    write_stable_diffusion(recipe.out / "stable-diffusion", vae.cpu(), text_encoder.cpu(), tokenizer, unet.cpu())


def write_stable_diffusion(
    folder: Path, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> None:
    """Writes the folder that `StableDiffusionPipeline.from_pretrained` loads, with the UNet in half precision."""
    for model in (vae, unet):
        model.register_to_config(_name_or_path="")  # else it holds the folder that the model was loaded from
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


if __name__ == "__main__":
    main(tyro.cli(Recipe))
