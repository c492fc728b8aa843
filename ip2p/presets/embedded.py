"""Configs of the embedded default: drawn scenes and the tiny models that are shipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ip2p.config import (
    EditTypeRendering,
    EvaluationConfig,
    FilteringConfig,
    PipelineConfig,
    PromptsConfig,
    RenderingConfig,
    ScoringConfig,
    ScreeningConfig,
    Thresholds,
    TrainingConfig,
)


def data_folder() -> Path:
    """Returns the folder of the shipped data: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_data"
    return installed if installed.is_dir() else package.parent / "data"


def shapes() -> PipelineConfig:
    """Runs the embedded default: drawn scenes and tiny models, minutes on two CPU cores."""
    models = data_folder() / "shapes"
    stable_diffusion = str(models / "stable-diffusion")
    return PipelineConfig(
        out=Path("runs/shapes"),
        prompts=PromptsConfig(
            captions=str(models / "captions.txt"),
            num_triplets_per_caption=3,
            model=str(models / "language-model"),
            screening=ScreeningConfig(check_reference=True),
            shard_size=200,
            edit_type_rules=(
                (r"^(add|put a|place)\b", "add"),
                (r"^(remove|delete|erase|take away)\b", "remove"),
                (r"^(replace|swap|exchange)\b", "replace"),
                (r"\bbackground\b", "background"),
                (r"\b(bigger|smaller|shrink|enlarge)\b|^make .* (small|large)$", "size"),
                (r" (into|to|make) a \w+$|^make .* a \w+$", "shape"),
                (r"", "colour"),
            ),
        ),
        rendering=_shapes_rendering(stable_diffusion),
        scoring=ScoringConfig(clip_model=str(models / "clip"), clip_pretrained=None, ssim=True, shift=True),
        filtering=_shapes_filtering(),
        training=_shapes_training(stable_diffusion),
        evaluation=EvaluationConfig(
            domain="ip2p.shapes.domain:ShapesDomain",
            num_edits=420,
            num_sweep_edits=49,
            num_sdedit_edits=420,
            guidance_scale=2.0,
            image_guidance_scale=1.5,
            sdedit_guidance_scale=1.0,
            grid_guidance_scales=(1.0, 2.0, 4.0),
            judge_clip_model=str(models / "judge"),
            num_inference_steps=8,
            dtype="auto",
        ),
    )


def _shapes_rendering(model: str) -> RenderingConfig:
    """Renders in few steps; what is to be added needs a layout that is not fixed yet."""
    return RenderingConfig(
        model=model,
        dtype="auto",
        num_inference_steps=8,
        guidance_scale=(1.0, 1.0),
        p2p=(0.0, 0.5),
        cross_p2p=(0.8, 1.0),
        shared_steps=(0.43, 0.57),
        blend_by_difference=True,
        num_candidates=1,
        per_edit_type={
            "colour": EditTypeRendering(num_candidates=2),
            "size": EditTypeRendering(num_candidates=2),
            "background": EditTypeRendering(p2p=(0.0, 0.3), shared_steps=(0.29, 0.42)),
            "add": EditTypeRendering(
                num_candidates=2,
                p2p=(0.0, 0.0),
                cross_p2p=(0.3, 0.42),
                shared_steps=(0.15, 0.28),
                local_blend=(0.3, 0.5),
            ),
            "remove": EditTypeRendering(p2p=(0.0, 0.3), shared_steps=(0.29, 0.42), local_blend=(0.3, 0.5)),
            "replace": EditTypeRendering(num_candidates=2),
        },
        batch_size=32,
        keep_rejected_images=True,
    )


def shapes_quick() -> PipelineConfig:
    """Runs the embedded default on an eighth of the captions, for a first look within four minutes."""
    config = shapes()
    return replace(
        config,
        out=Path("runs/shapes-quick"),
        prompts=replace(config.prompts, num_captions=200),
        training=replace(config.training, max_train_steps=400),
        evaluation=replace(
            config.evaluation,
            num_edits=70,
            num_sweep_edits=14,
            num_sdedit_edits=70,
            image_guidance_scales=(1.0, 1.5, 2.0),
        ),
    )


def shapes_pictures() -> PipelineConfig:
    """Has the editor of the run `shapes` edit true drawings, and trains the next editor on what passes the filter."""
    config = shapes()
    return replace(
        config,
        out=Path("runs/shapes-pictures"),
        prompts=replace(config.prompts, captions="", pictures="ip2p.shapes.draw:Drawings", num_captions=1200),
        rendering=RenderingConfig(
            backend="editor",
            model="runs/shapes/model",
            dtype="auto",
            num_inference_steps=8,
            guidance_scale=(1.5, 2.5),
            image_guidance_scale=(1.3, 1.7),
            num_candidates=2,
            batch_size=32,
            keep_rejected_images=True,
        ),
        filtering=_pictures_filtering(),
    )


def _pictures_filtering() -> FilteringConfig:
    """Asks for less likeness where an editor keeps less, and for a clearer change of size; chosen on other drawings."""
    config = _shapes_filtering()
    own = {
        "size": Thresholds(original=0.46, edited=0.5, direction=0.6, image=0.1, ssim=0.55, max_shift=0.038),
        "add": Thresholds(original=0.46, edited=0.5, direction=-1.0, image=0.1, ssim=0.83),
        "remove": Thresholds(original=0.5, edited=0.5, direction=-1.0, image=0.1, ssim=0.65),
    }
    return replace(config, per_edit_type=config.per_edit_type | own)


def shapes_dit() -> PipelineConfig:
    """Runs the embedded default on a flow transformer: a small Stable Diffusion 3 without T5 renders and is trained."""
    config, model = shapes(), str(data_folder() / "shapes" / "stable-diffusion-3")
    return replace(
        config,
        out=Path("runs/shapes-dit"),
        rendering=_shapes_dit_rendering(config.rendering, model),
        training=replace(
            config.training,
            pretrained_model_name_or_path=model,
            max_sequence_length=0,
            timestep_bias_strategy="none",
            timestep_bias_multiplier=1.0,
            timestep_bias_portion=0.25,
            logit_mean=0.4,
            logit_std=1.2,
        ),
        evaluation=replace(config.evaluation, num_inference_steps=12, sdedit_guidance_scale=2.0),
    )


def _shapes_dit_rendering(config: RenderingConfig, model: str) -> RenderingConfig:
    """Shares more of the first steps than `_shapes_rendering`, which can share the attention to words too.

    The ranges were chosen on other scenes than the run's.
    """
    return replace(
        config,
        model=model,
        max_sequence_length=0,
        num_inference_steps=12,
        guidance_scale=(2.0, 2.0),
        p2p=(0.1, 0.4),
        cross_p2p=(0.0, 0.0),
        shared_steps=(0.47, 0.6),
        per_edit_type={
            "colour": EditTypeRendering(num_candidates=2),
            "size": EditTypeRendering(num_candidates=3),
            "background": EditTypeRendering(shared_steps=(0.4, 0.7)),
            "add": EditTypeRendering(
                num_candidates=2, p2p=(0.0, 0.1), shared_steps=(0.2, 0.32), local_blend=(0.3, 0.5)
            ),
            "remove": EditTypeRendering(shared_steps=(0.35, 0.45), local_blend=(0.3, 0.5)),
            "replace": EditTypeRendering(num_candidates=3, shared_steps=(0.38, 0.5)),
        },
    )


def _shapes_training(base: str) -> TrainingConfig:
    """Trains for few steps, hence Muon, more noisy timesteps and a high rate for the first convolution's new half."""
    return TrainingConfig(
        pretrained_model_name_or_path=base,
        resolution=64,
        balance_column="edit_type",
        train_batch_size=16,
        random_flip=True,
        max_train_steps=3000,
        optim="muon",
        learning_rate=2e-3,
        learning_rate_conv_in=1e-2,
        timestep_bias_strategy="later",
        timestep_bias_multiplier=2.0,
        timestep_bias_portion=0.5,
        lr_scheduler="cosine",
        lr_warmup_steps=50,
        mixed_precision="auto",
        ema_decay=0.995,
        checkpointing_steps=300,
    )


def _shapes_filtering() -> FilteringConfig:
    """Sets thresholds by edit type: CLIP is far more reliable for some, and what is added has no place to keep.

    They were chosen on other captions and seeds than the run's. CLIP's right captions score 0.5 to 0.66.
    """
    return FilteringConfig(
        thresholds=Thresholds(original=0.5, edited=0.52, direction=0.69, image=0.1, ssim=0.6, max_shift=0.045),
        per_edit_type={
            "shape": Thresholds(original=0.54, edited=0.4, direction=0.74, image=0.1, ssim=0.54, max_shift=0.034),
            "size": Thresholds(original=0.46, edited=0.6, direction=0.1, image=0.1, ssim=0.55, max_shift=0.038),
            "background": Thresholds(original=0.5, edited=0.5, direction=0.78, image=0.1),
            "add": Thresholds(original=0.46, edited=0.53, direction=-1.0, image=0.1, ssim=0.83),
            "remove": Thresholds(original=0.5, edited=0.5, direction=-1.0, image=0.1, ssim=0.8),
            "replace": Thresholds(original=0.44, edited=0.56, direction=0.1, image=0.1, ssim=0.48, max_shift=0.031),
        },
        max_pairs_per_triplet=1,
        selection="first",
    )
