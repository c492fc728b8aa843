"""`python -m ip2p.shapes.train OUT`: trains the tiny base models from scratch and prints what they reach."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer

from ip2p.models.loading import keep_freed_memory, resolve_device
from ip2p.presets import shapes
from ip2p.shapes.train import clip as clip_recipe
from ip2p.shapes.train.export import write_captions, write_stable_diffusion
from ip2p.shapes.train.language_model import train_language_model, write_language_tokenizer
from ip2p.shapes.train.measure import all_figures
from ip2p.shapes.train.text import train_text_tower, write_tokenizer
from ip2p.shapes.train.unet import distil_guidance, train_unet
from ip2p.shapes.train.vae import narrow_posterior, train_vae, tune_decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The tiny base models of the shapes domain, trained from scratch; run again to go on after an interrupt."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder for the models."""
    work: Path = Path(".cache/shapes-train")
    """Folder for checkpoints."""
    seed: int = 0
    """Seed of every draw."""
    device: str = "auto"
    """Where to train."""
    vae_steps: int = 1500
    """Steps of the autoencoder."""
    text_steps: int = 500
    """Steps of the text tower."""
    clip_steps: int = 3400
    """Steps of CLIP's picture tower."""
    judge_steps: int = 3000
    """Steps of the picture tower of the CLIP that judges edits; its text tower takes a sixth of them."""
    unet_steps: int = 14500
    """Steps of the denoiser."""
    guidance_steps: int = 5000
    """Steps of the denoiser's second training, towards its guided self."""
    decoder_steps: int = 1000
    """Steps of the decoder's second training."""
    language_steps: int = 16000
    """Steps of the language model."""
    num_captions: int = 1700
    """Captions for the default run."""
    measure: bool = True
    """Print the figures at the end."""


def main(recipe: Recipe) -> None:
    """Trains what is not trained yet, writes the folders and prints the figures."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_freed_memory()
    recipe.work.mkdir(parents=True, exist_ok=True)
    recipe.out.mkdir(parents=True, exist_ok=True)
    device = resolve_device(recipe.device)
    train_pictures(recipe, device)
    tokenizer = write_language_tokenizer(recipe.out / "language-model")
    judge_tokenizer = CLIPTokenizer.from_pretrained(recipe.work / "tokenizer")
    judge = clip_recipe.train_judge(
        recipe.work / "judge", judge_tokenizer, seed=recipe.seed + 1, num_steps=recipe.judge_steps, device=device
    )
    clip_recipe.write_clip(recipe.out / "judge", judge, judge_tokenizer, clip_recipe.VIT)
    model = train_language_model(
        recipe.work, tokenizer, seed=recipe.seed, num_steps=recipe.language_steps, device=device
    )
    model.save_pretrained(recipe.out / "language-model")
    write_captions(recipe.out / "captions.txt", seed=recipe.seed, num=recipe.num_captions)
    if recipe.measure:
        print(json.dumps(all_figures(recipe.out, shapes()), indent=2))


def train_pictures(recipe: Recipe, device: str) -> None:
    """Autoencoder, text tower, CLIP and denoiser, in the order in which they need each other."""
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


if __name__ == "__main__":
    main(tyro.cli(Recipe))
