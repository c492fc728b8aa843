"""The trained editor as a folder that diffusers' InstructPix2Pix pipelines load, Stable Diffusion's or XL's."""

from __future__ import annotations

import logging
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
from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token

from ip2p.config import TrainingConfig, TrainingJob
from ip2p.hub import check_token, public_name, telling_refusals
from ip2p.models import components
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


logger = logging.getLogger(__name__)

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
SENT = ["README.md", "model_index.json", LORA_FILE, CONV_IN_FILE, *(f"{part}/*" for part in PARTS)]
"""Of the export's folder, which may be the training's."""

USAGE = {
    False: "StableDiffusionInstructPix2PixPipeline",
    True: "StableDiffusionXLInstructPix2PixPipeline",
}


def write_card(job: TrainingJob, folder: Path, summary: dict[str, Any], *, is_xl: bool) -> None:
    """README.md of the exported pipeline: what it is, how it was trained, how it is used."""
    base = public_name(job.pretrained_model_name_or_path)
    is_id = base == job.pretrained_model_name_or_path
    data = ModelCardData(
        base_model=base if is_id else None,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["instruct-pix2pix", "image-editing", "diffusers", *(["lora"] if job.use_lora else [])],
    )
    settings = "\n".join(f"| `{name}` | {getattr(job, name)} |" for name in SHOWN)
    folder_name = job.hub_model_id or folder.name
    (folder / "README.md").write_text(
        str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(job, base, folder_name, summary, settings, is_xl=is_xl)}"))
    )


SHOWN = (
    "resolution",
    "train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler",
    "lr_warmup_steps",
    "optim",
    "conditioning_dropout_prob",
    "use_ema",
    "mixed_precision",
    "random_flip",
    "snr_gamma",
    "noise_offset",
    "seed",
)


def _text(job: TrainingJob, base: str, name: str, summary: dict[str, Any], settings: str, *, is_xl: bool) -> str:
    kind = USAGE[is_xl]
    return f"""# {name}

Edits images as an instruction says (InstructPix2Pix, https://arxiv.org/abs/2211.09800). Trained from `{base}` on
{summary["samples"]} pairs of `{public_name(job.data)}` for {summary["steps"]} steps with ip2p.

```python
import torch
from diffusers import {kind}
from diffusers.utils import load_image

pipeline = {kind}.from_pretrained("{name}").to("cuda")
image = load_image("photo.png")
edited = pipeline("make it snowy", image=image, guidance_scale=7.5, image_guidance_scale=1.5).images[0]
```

| setting | value |
|---|---|
{settings}

The model takes over what its base and its data show, and their licences bind it. Look at its edits before you build on
them.
"""


def check_may_upload(job: TrainingJob) -> None:
    """ValueError, before the training starts, where it is to be uploaded and there is no token."""
    if job.push_to_hub:
        check_token(get_token())


def upload(job: TrainingJob, folder: Path) -> str:
    """Uploads the pipeline and its card; returns the address. The token is the environment's or the hub client's."""
    api = HfApi(token=check_token(get_token()))
    name = job.hub_model_id or Path(job.output_dir).resolve().name
    with telling_refusals(name):
        repository = api.create_repo(name, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload the trained editor", allow_patterns=SENT
        )
    logger.info("uploaded %s to %s", folder, repository)
    return str(repository)
