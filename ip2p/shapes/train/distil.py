"""The denoiser's second training: to draw without guidance what guidance draws, and to know what instructions say.

Classifier-free guidance costs a second pass of every step. Here a single pass is trained on the velocity of the drawn
picture plus what guidance would add to it, by the word of the denoiser as it came (Tang et al. 2025, "Diffusion Models
without Classifier-free Guidance"): so the default renders at guidance 1, as turbo models do, and still learns from the
drawings. Half of each batch are scenes of two objects, which fail most. A fifth are instructions, each with the scene
that it leads to: an editor then starts from a denoiser that has met the words it will be told.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ip2p.shapes.language import draw_edit, parse_caption
from ip2p.shapes.train.loop import LoopConfig, train
from ip2p.shapes.train.unet import (
    BATCH_SIZE,
    NUM_SCENES,
    LatentPool,
    diffuse,
    encode_scenes,
    hidden_states,
    latent_pool,
    new_scheduler,
)

GUIDANCE_SCALE = 2.2
CAPTION_DROPOUT = 0.05
NUM_INSTRUCTED = 10
NUM_CROWDED = BATCH_SIZE // 2
NUM_EDITS = 12_000


def edit_pool(folder: Path, vae: AutoencoderKL, *, seed: int, num: int, device: str) -> LatentPool:
    """Draws edits; keeps the scene after and the instruction."""
    rng = random.Random(f"{seed} edits")
    edits = [draw_edit(rng) for _ in range(num)]
    path = folder / f"edit-latents-{seed}-{num}.safetensors"
    latents = encode_scenes(path, vae, [edit.edited for edit in edits], device)
    return LatentPool(latents, [edit.edit_prompt for edit in edits])


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
    """Trains `unet` in place; its teacher is itself as it came."""
    scenes = latent_pool(folder, vae, seed=seed, num=num_scenes, device=device)
    edits = edit_pool(folder, vae, seed=seed, num=num_edits, device=device)
    teacher = copy.deepcopy(unet).eval().requires_grad_(False)
    scheduler, null_text = new_scheduler(), hidden_states(text_encoder.requires_grad_(False), tokenizer, [""])
    num_captioned = BATCH_SIZE - NUM_INSTRUCTED
    some = slice(num_captioned)
    crowded = torch.tensor([k for k, text in enumerate(scenes.texts) if _num_objects(text) == 2])

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(hash((seed + 1, step)))
        two = crowded[torch.randint(len(crowded), (NUM_CROWDED,), generator=generator)]
        any_number = torch.randint(len(scenes.texts), (num_captioned - NUM_CROWDED,), generator=generator)
        captioned = torch.cat([two, any_number])
        instructed = torch.randint(len(edits.texts), (NUM_INSTRUCTED,), generator=generator)
        texts = [scenes.texts[k] for k in captioned.tolist()] + [edits.texts[k] for k in instructed.tolist()]
        dropped = torch.rand(num_captioned, generator=generator) < CAPTION_DROPOUT
        hidden = hidden_states(text_encoder, tokenizer, texts)
        hidden[some][dropped.to(device)] = null_text
        latents = torch.cat([scenes.latents[captioned], edits.latents[instructed]]).float()
        latents = latents.to(device, memory_format=torch.channels_last)
        noisy, timesteps, target = diffuse(scheduler, latents, generator)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            target[some] += guidance_difference(teacher, noisy[some], timesteps[some], hidden[some], null_text)
            predicted = unet(noisy, timesteps, hidden).sample
        loss: Tensor = (predicted.float() - target).square().mean()
        return loss

    config = LoopConfig(num_steps=num_steps, learning_rate=3e-4, warmup_steps=100, ema_decay=0.998)
    return train(unet.train(), loss_at, config, checkpoint=folder / "guidance.pt", name="guidance")


def _num_objects(text: str) -> int:
    described = parse_caption(text)
    return 0 if described is None else len(described.objects)


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
    """(N, 4, H, W) float32: (guidance_scale - 1) * (v(text) - v(null)), what guidance adds to v(text); one pass.

    `text` is (N, L, D) and `null_text` (1, L, D).
    """
    texts = torch.cat([null_text.expand_as(text), text])
    unguided, guided = unet(torch.cat([noisy] * 2), torch.cat([timesteps] * 2), texts).sample.float().chunk(2)
    added: Tensor = (guidance_scale - 1) * (guided - unguided)
    return added
