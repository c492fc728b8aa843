"""Trains the flow transformer: a small Stable Diffusion 3 on the frozen autoencoder and text towers.

It has no T5, and no positions for one: T5's zeros would be most of its text. What it reads is what
`StableDiffusion3Pipeline.encode_prompt` returns for a `max_sequence_length` of 0.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ip2p.config import RenderingConfig
from ip2p.models.stable_diffusion_3 import ClipsAndT5
from ip2p.models.texts import Texts, join_texts
from ip2p.shapes.train.clip import VIT, new_clip, text_encoder_of
from ip2p.shapes.train.loop import LoopConfig, train
from ip2p.shapes.train.text import train_text_tower
from ip2p.shapes.train.unet import LatentPool, edit_pool, latent_pool

BATCH_SIZE = 48
NUM_INSTRUCTED = 6
"""Samples of a batch whose text is an instruction and whose picture is the edited scene."""
TEXT_DROPOUT = 0.1
NUM_SCENES, NUM_EDITS = 40_000, 12_000
MAX_TOKENS = 24
"""Length of a text; the longest caption has 18 tokens."""
LOGIT_MEAN, LOGIT_STD = 0.4, 1.2
"""Of the sigmas' density: more noise than Stable Diffusion 3's 0 and 1, because steps with much noise decide where the
objects are, and a picture this small has lost its shapes at a sigma of 0.7."""
SMALL_TEXT = MappingProxyType({"width": 64, "heads": 2, "layers": 2})
"""The second text tower. It needs two layers, because Stable Diffusion 3 reads the states before the last one."""
SMALL_TEXT_STEPS = 500
FLOW_RENDERING = RenderingConfig(
    num_inference_steps=12, guidance_scale=(2.0, 2.0), max_sequence_length=0, batch_size=25
)
"""How the transformer draws, without T5."""

TextEncoders = tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection]


def new_transformer(joint_width: int, pooled_width: int) -> SD3Transformer2DModel:
    """Returns the untrained transformer, whose every block starts as the identity."""
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=joint_width,
        caption_projection_dim=128,
        pooled_projection_dim=pooled_width,
        pos_embed_max_size=16,
    )
    gates = [norm.linear for block in transformer.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    for layer in (*gates, transformer.norm_out.linear, transformer.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def new_sampler() -> FlowMatchEulerDiscreteScheduler:
    """Returns the scheduler that is shipped: it noises each step's picture anew, so that the next can correct it."""
    return FlowMatchEulerDiscreteScheduler(shift=2.0, stochastic_sampling=True)


def with_projection(encoder: CLIPTextModel) -> CLIPTextModelWithProjection:
    """Returns the encoder with a projection that changes nothing, in the class that Stable Diffusion 3 holds."""
    config = CLIPTextConfig.from_dict(encoder.config.to_dict() | {"projection_dim": encoder.config.hidden_size})
    projecting = CLIPTextModelWithProjection(config)
    projecting.text_model.load_state_dict(_text_model(encoder).state_dict())
    nn.init.eye_(projecting.text_projection.weight)
    nn.Module.train(projecting.requires_grad_(False), False)
    return projecting


def _text_model(encoder: CLIPTextModel) -> nn.Module:
    return getattr(encoder, "text_model", encoder)


def train_small_tower(
    folder: Path, tokenizer: CLIPTokenizer, *, seed: int, num_steps: int, device: str
) -> CLIPTextModel:
    """Trains the second text tower as the first was trained, and discards the picture tower beside it."""
    torch.manual_seed(seed)
    clip = new_clip(len(tokenizer), VIT, SMALL_TEXT).to(device)
    train_text_tower(folder, clip, tokenizer, seed=seed, num_steps=num_steps, device=device)
    return text_encoder_of(clip.cpu(), tokenizer)


def short_tokenizer(tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    """Returns a copy that pads and truncates to `MAX_TOKENS`, without what the tokenizer keeps of its last call."""
    shorter = copy.deepcopy(tokenizer)
    shorter.backend_tokenizer.no_padding()
    shorter.backend_tokenizer.no_truncation()
    shorter.model_max_length = MAX_TOKENS
    return shorter


def encode_texts(encoders: TextEncoders, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Texts:
    """Returns both towers' states of the texts, side by side, as `StableDiffusion3Pipeline` makes them without T5."""
    width = sum(int(encoder.config.hidden_size) for encoder in encoders)
    return ClipsAndT5((tokenizer, tokenizer), encoders, None, None, num_t5_tokens=0, width=width).encode(texts)


def encode_pool(encoders: TextEncoders, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Texts:
    """Returns the states of many texts in half precision, on the CPU."""
    parts = (encode_texts(encoders, tokenizer, texts[start : start + 256]) for start in range(0, len(texts), 256))
    return join_texts([part.map(lambda states: states.half().cpu()) for part in parts])


def draw_sigmas(num: int, generator: torch.Generator) -> Tensor:
    """Draws the shares of noise of `num` samples from a logit-normal density."""
    sigmas: Tensor = compute_density_for_timestep_sampling(
        "logit_normal", num, logit_mean=LOGIT_MEAN, logit_std=LOGIT_STD, generator=generator
    )
    return sigmas


def mix_noise(latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (noisy latents, their timesteps, the velocities to predict) for scaled latents."""
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    sigmas = draw_sigmas(len(latents), generator).to(latents.device)
    share = sigmas[:, None, None, None]
    return (1 - share) * latents + share * noise, 1000 * sigmas, noise - latents


def flow_loss(
    transformer: Callable[..., Any], noisy: Tensor, timesteps: Tensor, target: Tensor, texts: Texts
) -> Tensor:
    """Returns the mean squared error of the predicted velocities.

    Attention is computed with explicit maps: on a CPU, the fused kernel's gradient is slow in bfloat16.
    """
    device = noisy.device.type
    kernel = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
    with kernel, torch.autocast(device, torch.bfloat16):
        predicted = transformer(noisy, texts.hidden, texts.pooled, timesteps).sample
    loss: Tensor = (predicted.float() - target).square().mean()
    return loss


def text_pool(encoders: TextEncoders, tokenizer: CLIPTokenizer, scenes: LatentPool, edits: LatentPool) -> Texts:
    """Encodes the texts of both pools, one after the other, and no text at the end."""
    return encode_pool(encoders, tokenizer, [*scenes.texts, *edits.texts, ""])


def train_transformer(
    folder: Path,
    vae: AutoencoderKL,
    encoders: TextEncoders,
    tokenizer: CLIPTokenizer,
    *,
    seed: int,
    num_steps: int,
    device: str = "cpu",
    num_scenes: int = NUM_SCENES,
    num_edits: int = NUM_EDITS,
    compiled: bool = False,
) -> SD3Transformer2DModel:
    """Trains the transformer on captions and, for a part of each batch, on instructions with the edited scenes."""
    scenes = latent_pool(folder, vae, seed=seed, num=num_scenes, device=device)
    edits = edit_pool(folder, vae, seed=seed, num=num_edits, device=device)
    latents = torch.cat([scenes.latents, edits.latents])
    texts = text_pool(encoders, tokenizer, scenes, edits)
    torch.manual_seed(seed)
    pooled_width = sum(int(encoder.config.projection_dim or 0) for encoder in encoders)
    transformer = new_transformer(texts.hidden.shape[-1], pooled_width).to(device)
    called = torch.compile(transformer) if compiled else transformer

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(hash((seed, step)))
        captioned = torch.randint(num_scenes, (BATCH_SIZE - NUM_INSTRUCTED,), generator=generator)
        instructed = torch.randint(num_edits, (NUM_INSTRUCTED,), generator=generator)
        chosen = torch.cat([captioned, num_scenes + instructed])
        dropped = torch.rand(BATCH_SIZE, generator=generator) < TEXT_DROPOUT
        rows = chosen.masked_fill(dropped, len(latents))
        read = texts.map(lambda states: states[rows].to(device, torch.float32))
        return flow_loss(called, *mix_noise(latents[chosen].float().to(device), generator), read)

    config = LoopConfig(num_steps=num_steps, learning_rate=3e-3, warmup_steps=300, betas=(0.9, 0.99), ema_decay=0.999)
    return train(transformer, loss_at, config, checkpoint=folder / "transformer.pt")


def train_stable_diffusion_3(
    out: Path, base: Path, work: Path, *, seed: int, num_steps: int, device: str = "cpu", compiled: bool = False
) -> None:
    """Trains the transformer with the autoencoder and text tower of the folder `base` and writes the folder `out`."""
    work.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(base / "vae")
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    first = CLIPTextModel.from_pretrained(base / "text_encoder")
    second = train_small_tower(work, tokenizer, seed=seed, num_steps=SMALL_TEXT_STEPS, device=device)
    encoders = (with_projection(first), with_projection(second))
    for model in (vae, *encoders):
        nn.Module.to(model, device)
    transformer = train_transformer(
        work, vae, encoders, tokenizer, seed=seed, num_steps=num_steps, device=device, compiled=compiled
    )
    write_stable_diffusion_3(out, vae, encoders, tokenizer, transformer)


def write_stable_diffusion_3(
    folder: Path,
    vae: AutoencoderKL,
    encoders: TextEncoders,
    tokenizer: CLIPTokenizer,
    transformer: SD3Transformer2DModel,
) -> None:
    """Writes the folder that `StableDiffusion3Pipeline.from_pretrained` loads, with all weights in half precision."""
    vae.register_to_config(_name_or_path="", shift_factor=0.0)  # the pipeline adds the shift, so it must be a number
    shorter = short_tokenizer(tokenizer)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=new_sampler(),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=shorter,
        text_encoder_2=encoders[1],
        tokenizer_2=shorter,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.to("cpu", torch.float16).save_pretrained(folder)
    for name in ("text_encoder", "text_encoder_2"):
        _load_in_single_precision(folder / name / "config.json")


def _load_in_single_precision(path: Path) -> None:
    """Names float32 in a text encoder's config: transformers loads weights in the type that it names."""
    config = json.loads(path.read_text()) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
