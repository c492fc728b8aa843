"""Trains the denoiser: a UNet with v-prediction and zero terminal SNR, on the frozen autoencoder and text tower.

Epsilon prediction learns almost nothing about global colour at high noise. V-prediction from pure noise does, and an
editor needs it to keep a background.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ip2p.shapes.language import draw_caption, draw_edit, parse_caption
from ip2p.shapes.scene import Scene, draw_scene, render
from ip2p.shapes.train.loop import LoopConfig, train
from ip2p.shapes.train.text import tokenize
from ip2p.shapes.train.vae import to_pixels
from ip2p.store import write_bytes
from ip2p.training.attention import choose_attention

logger = logging.getLogger(__name__)

BATCH_SIZE = 48
CAPTION_DROPOUT = 0.1
NUM_SCENES = 40_000

GUIDANCE_SCALE = 2.2
"""Guidance that the distilled denoiser learns to apply by itself."""
DISTIL_CAPTION_DROPOUT = 0.05
NUM_INSTRUCTED = 10
"""Samples of a distillation batch whose text is an instruction, taught without guidance."""
NUM_CROWDED = BATCH_SIZE // 2
"""Samples of a distillation batch that are of two objects."""
NUM_EDITS = 12_000


@dataclass(frozen=True, slots=True)
class LatentPool:
    """Scenes, encoded once, and the text of each."""

    latents: Tensor
    """(N, 4, 16, 16) float16, scaled."""
    texts: Sequence[str]


def new_unet(cross_attention_dim: int) -> UNet2DConditionModel:
    """Returns the untrained UNet, with attention at 8 x 8 latents only, where it costs a quarter."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def new_scheduler() -> DDIMScheduler:
    """Returns the noise of the training: Stable Diffusion's betas, rescaled so that the last step is pure noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,  # as in Stable Diffusion; trailing spacing does not use it
        set_alpha_to_one=False,
    )


def new_sampler() -> LCMScheduler:
    """Returns the scheduler that is shipped: it noises each step's picture anew, so that the next can correct it.

    A deterministic sampler of few steps carries a mistake of the first ones to the end.
    """
    return LCMScheduler.from_config(new_scheduler().config, original_inference_steps=100)


def latent_pool(folder: Path, vae: AutoencoderKL, *, seed: int, num: int, device: str) -> LatentPool:
    """Draws the training scenes and encodes them, or reads their latents from `folder`."""
    rng = random.Random(f"{seed} pool")
    scenes = [draw_scene(rng) for _ in range(num)]
    captions = [draw_caption(rng, scene) for scene in scenes]
    return LatentPool(encode_scenes(folder / f"latents-{seed}-{num}.safetensors", vae, scenes, device), captions)


def edit_pool(folder: Path, vae: AutoencoderKL, *, seed: int, num: int, device: str) -> LatentPool:
    """Draws edits and keeps the edited scene and the instruction."""
    rng = random.Random(f"{seed} edits")
    edits = [draw_edit(rng) for _ in range(num)]
    path = folder / f"edit-latents-{seed}-{num}.safetensors"
    latents = encode_scenes(path, vae, [edit.edited for edit in edits], device)
    return LatentPool(latents, [edit.edit_prompt for edit in edits])


@torch.no_grad()
def encode_scenes(path: Path, vae: AutoencoderKL, scenes: Sequence[Scene], device: str) -> Tensor:
    """Returns (N, 4, 16, 16) float16 scaled latents, read from `path` if it exists."""
    if not path.exists():
        logger.info("encoding %d scenes", len(scenes))
        parts = []
        for start in range(0, len(scenes), 64):
            pixels = to_pixels(np.stack([render(scene) for scene in scenes[start : start + 64]]))
            latents = vae.encode(pixels.to(device)).latent_dist.mode()
            parts.append((latents * vae.config.scaling_factor).half().cpu())
        write_bytes(path, save({"latents": torch.cat(parts).contiguous()}))
    return load_file(path)["latents"]


BANDS = torch.tensor([(0, 1000), (100, 600), (600, 1000)])
"""Ranges that a third of the timesteps comes from each: all of them, those that decide shapes (latents this small have
lost them by step 600), and those that decide how many objects there are and where."""


def draw_timesteps(num: int, generator: torch.Generator) -> Tensor:
    """Draws the timesteps of `num` samples from `BANDS`."""
    low, high = BANDS[torch.randint(len(BANDS), (num,), generator=generator)].T
    timesteps: Tensor = low + torch.rand(num, generator=generator) * (high - low)
    return timesteps.long()


def diffuse(scheduler: DDIMScheduler, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (noisy latents, their timesteps, the velocities to predict) for scaled latents."""
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    timesteps = draw_timesteps(len(latents), generator).to(latents.device)
    noisy, velocities = (make(latents, noise, timesteps) for make in (scheduler.add_noise, scheduler.get_velocity))
    return noisy, timesteps, velocities


def hidden_states(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Returns the (N, 32, D) states of the texts that the denoiser reads."""
    hidden: Tensor = text_encoder(tokenize(tokenizer, texts).to(text_encoder.device)).last_hidden_state
    return hidden


def velocity_loss(
    unet: UNet2DConditionModel, noisy: Tensor, timesteps: Tensor, hidden: Tensor, target: Tensor
) -> Tensor:
    """Returns the mean squared error of the predicted velocities."""
    with torch.autocast(noisy.device.type, torch.bfloat16):
        predicted = unet(noisy, timesteps, hidden).sample
    loss: Tensor = (predicted.float() - target).square().mean()
    return loss


def train_unet(
    folder: Path,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    *,
    seed: int,
    num_steps: int,
    device: str = "cpu",
    num_scenes: int = NUM_SCENES,
) -> UNet2DConditionModel:
    """Trains the denoiser on captions."""
    pool = latent_pool(folder, vae, seed=seed, num=num_scenes, device=device)
    torch.manual_seed(seed)
    unet = new_unet(text_encoder.config.hidden_size).to(device, memory_format=torch.channels_last)
    choose_attention(unet, torch.device(device), "bf16")
    scheduler = new_scheduler()
    text_encoder.requires_grad_(False)

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(hash((seed, step)))
        chosen = torch.randint(len(pool.texts), (BATCH_SIZE,), generator=generator)
        dropped = torch.rand(BATCH_SIZE, generator=generator) < CAPTION_DROPOUT
        captions = ["" if drop else pool.texts[index] for index, drop in zip(chosen.tolist(), dropped, strict=True)]
        hidden = hidden_states(text_encoder, tokenizer, captions)
        latents = pool.latents[chosen].float().to(device, memory_format=torch.channels_last)
        noisy, timesteps, target = diffuse(scheduler, latents, generator)
        return velocity_loss(unet, noisy, timesteps, hidden, target)

    config = LoopConfig(num_steps=num_steps, learning_rate=1e-3, warmup_steps=300, ema_decay=0.999)
    return train(unet, loss_at, config, checkpoint=folder / "unet.pt")


def distil_guidance(
    folder: Path,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    *,
    seed: int,
    num_steps: int,
    device: str = "cpu",
    num_scenes: int = NUM_SCENES,
    num_edits: int = NUM_EDITS,
) -> UNet2DConditionModel:
    """Trains `unet` in place to predict what it predicted with guidance before; its teacher is a copy of itself."""
    scenes = latent_pool(folder, vae, seed=seed, num=num_scenes, device=device)
    edits = edit_pool(folder, vae, seed=seed, num=num_edits, device=device)
    teacher = copy.deepcopy(unet).eval().requires_grad_(False)
    scheduler, null_text = new_scheduler(), hidden_states(text_encoder.requires_grad_(False), tokenizer, [""])
    num_captioned = BATCH_SIZE - NUM_INSTRUCTED
    with_caption = slice(num_captioned)
    descriptions = [parse_caption(text) for text in scenes.texts]
    crowded = torch.tensor([k for k, one in enumerate(descriptions) if one is not None and len(one.objects) == 2])

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(hash((seed + 1, step)))
        two = crowded[torch.randint(len(crowded), (NUM_CROWDED,), generator=generator)]
        any_number = torch.randint(len(scenes.texts), (num_captioned - NUM_CROWDED,), generator=generator)
        captioned = torch.cat([two, any_number])
        instructed = torch.randint(len(edits.texts), (NUM_INSTRUCTED,), generator=generator)
        texts = [scenes.texts[k] for k in captioned.tolist()] + [edits.texts[k] for k in instructed.tolist()]
        dropped = torch.rand(num_captioned, generator=generator) < DISTIL_CAPTION_DROPOUT
        hidden = hidden_states(text_encoder, tokenizer, texts)
        hidden[with_caption][dropped.to(device)] = null_text
        latents = torch.cat([scenes.latents[captioned], edits.latents[instructed]]).float()
        latents = latents.to(device, memory_format=torch.channels_last)
        noisy, timesteps, target = diffuse(scheduler, latents, generator)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            target[with_caption] += guidance_difference(
                teacher, noisy[with_caption], timesteps[with_caption], hidden[with_caption], null_text
            )
        return velocity_loss(unet, noisy, timesteps, hidden, target)

    config = LoopConfig(num_steps=num_steps, learning_rate=3e-4, warmup_steps=100, ema_decay=0.998)
    return train(unet.train(), loss_at, config, checkpoint=folder / "guidance.pt")


@torch.no_grad()
def guidance_difference(
    unet: UNet2DConditionModel,
    noisy: Tensor,
    timesteps: Tensor,
    text: Tensor,
    null_text: Tensor,
    *,
    guidance_scale: float = GUIDANCE_SCALE,
) -> Tensor:
    """Returns (guidance_scale - 1) * (v(text) - v(null)), what guidance adds to v(text), as (N, 4, H, W) float32.

    `text` is (N, L, D) and `null_text` (1, L, D); both go through the UNet in one pass.
    """
    texts = torch.cat([null_text.expand_as(text), text])
    unguided, guided = unet(torch.cat([noisy] * 2), torch.cat([timesteps] * 2), texts).sample.float().chunk(2)
    added: Tensor = (guidance_scale - 1) * (guided - unguided)
    return added
