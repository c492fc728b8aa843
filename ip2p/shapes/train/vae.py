"""Trains the autoencoder: 64 x 64 pixels to 16 x 16 x 4 latents."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ip2p.shapes.scene import draw_scene, render
from ip2p.shapes.train.loop import LoopConfig, train

BATCH_SIZE = 24
KL_WEIGHT = 2e-4
"""Weight per latent element; equals a pixel noise of about 0.035 in the evidence lower bound."""

NARROWING = 4.0
"""Subtracted from the posterior's log-variance: a deviation of 0.13 becomes 0.02, on latents with one of 1.16."""

LATENT_NOISE = 0.25
"""Most noise on the latents while the decoder is tuned; the latents' own deviation is about 1.3."""


def new_vae() -> AutoencoderKL:
    """Returns the untrained autoencoder."""
    return AutoencoderKL(
        block_out_channels=(24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    )


def scene_pixels(seed: str, num: int) -> Tensor:
    """Renders scenes drawn from `seed`: (num, 3, 64, 64) in [-1, 1]."""
    rng = random.Random(seed)
    return to_pixels(np.stack([render(draw_scene(rng)) for _ in range(num)]))


def to_pixels(images: np.ndarray) -> Tensor:
    """Converts (N, H, W, 3) uint8 to (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def train_vae(folder: Path, *, seed: int, num_steps: int, device: str = "cpu") -> AutoencoderKL:
    """Trains the autoencoder and measures its latent scale, which is stored as `scaling_factor`."""
    torch.manual_seed(seed)
    vae = new_vae().to(device)

    def loss_at(step: int) -> Tensor:
        torch.manual_seed(hash((seed, step)))
        pixels = scene_pixels(f"{seed} vae {step}", BATCH_SIZE).to(device)
        posterior = vae.encode(pixels).latent_dist
        error = vae.decode(posterior.sample()).sample - pixels
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss: Tensor = error.square().mean() + 0.1 * error.abs().mean() + KL_WEIGHT * kl
        return loss

    config = LoopConfig(num_steps=num_steps, learning_rate=2e-3, warmup_steps=100, ema_decay=0.995, weight_decay=0.0)
    train(vae, loss_at, config, checkpoint=folder / "vae.pt")
    with torch.no_grad():
        latents = vae.encode(scene_pixels(f"{seed} scale", 512).to(device)).latent_dist.mode()
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    return vae


def tune_decoder(folder: Path, vae: AutoencoderKL, *, seed: int, num_steps: int, device: str = "cpu") -> AutoencoderKL:
    """Sharpens the decoder on the frozen encoder's latents, as Stable Diffusion's later autoencoders were made.

    The latents do not change, so a denoiser trained on them still fits; faint noise on them stands for its errors.
    """
    vae.to(device).requires_grad_(False)
    decoder = torch.nn.ModuleList([vae.decoder, vae.post_quant_conv]).requires_grad_(True)

    def loss_at(step: int) -> Tensor:
        torch.manual_seed(hash((seed, step)))
        pixels = scene_pixels(f"{seed} decoder {step}", BATCH_SIZE).to(device)
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.mode()
            latents += LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, device=device) * torch.randn_like(latents)
        error = vae.decode(latents).sample - pixels
        loss: Tensor = error.square().mean() + 0.2 * error.abs().mean()
        return loss

    config = LoopConfig(num_steps=num_steps, learning_rate=1e-3, warmup_steps=50, ema_decay=0.995, weight_decay=0.0)
    train(decoder, loss_at, config, checkpoint=folder / "decoder.pt")
    return vae.eval()


@torch.no_grad()
def narrow_posterior(vae: AutoencoderKL) -> AutoencoderKL:
    """Shrinks the variance of the encoder's latents and keeps their means.

    An editor's training samples its targets from the posterior. That adds noise that neither text nor picture
    explains, and no denoiser here was trained with it.
    """
    log_variance = slice(vae.config.latent_channels, None)
    vae.quant_conv.bias[log_variance] -= NARROWING
    return vae
