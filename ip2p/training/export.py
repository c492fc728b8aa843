"""Writes the trained editor as a folder that its pipeline loads, with a card; uploads both, never states or logs."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token

from ip2p.config import TrainingConfig, TrainingJob
from ip2p.hub import check_token, hub_errors, public_name
from ip2p.models.architecture import Architecture
from ip2p.models.components import INDEX
from ip2p.training.checkpoint import remove_folder
from ip2p.training.lora import add_lora, lora_files, merge_adapters, trained_weights, write_lora

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
CODE_FILE = "pipeline.py"
"""The code of a pipeline that diffusers lacks."""


def write_editor(denoiser: ModelMixin, base: Architecture, config: TrainingConfig, folder: Path) -> None:
    """Writes the pipeline beside its place and moves it there; its index comes last and vouches for the rest."""
    plain = denoiser
    if config.use_lora:
        is_whole = config.quantization is None
        plain = merge_adapters(copy.deepcopy(denoiser) if is_whole else _on_whole_weights(denoiser, base, config))
    pipeline = base.build_editor(plain.to(CPU, memory_format=torch.contiguous_format), config, CPU)
    temporary = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.save_pretrained(temporary, safe_serialization=True)
    if config.use_lora:
        write_lora(denoiser, base, temporary)
    own = Path(config.pretrained_model_name_or_path).expanduser()
    for tokenizer in temporary.glob("tokenizer*"):
        for name in ("vocab.json", "merges.txt"):  # older files, which some loaders read and the tokenizer leaves out
            if (own / tokenizer.name / name).exists() and not (tokenizer / name).exists():
                shutil.copyfile(own / tokenizer.name / name, tokenizer / name)
    _move(temporary, folder, stale=(INDEX, *lora_files(base)))


def _on_whole_weights(denoiser: ModelMixin, base: Architecture, config: TrainingConfig) -> ModelMixin:
    """Returns the base's whole weights with the adapters and the widened layer of a quantised denoiser."""
    whole = add_lora(base.load_widened(replace(config, quantization=None)), base, config)
    whole.load_state_dict(trained_weights(denoiser, whole), strict=False)
    return whole


def _move(new: Path, place: Path, *, stale: tuple[str, ...]) -> None:
    """Moves part by part, since the place may hold checkpoints and logs too; `stale` files are removed first."""
    place.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (place / name).unlink(missing_ok=True)
    for part in sorted(new.iterdir(), key=lambda path: path.name == INDEX):
        if part.is_dir():
            remove_folder(place / part.name)
        os.replace(part, place / part.name)
    new.rmdir()


def write_card(job: TrainingJob, base: Architecture, folder: Path, summary: Mapping[str, float]) -> None:
    """Writes the pipeline's README.md: what it is, how it was trained, how it is used."""
    model = public_name(job.pretrained_model_name_or_path)
    is_id = model == job.pretrained_model_name_or_path
    data = ModelCardData(
        base_model=model if is_id else None,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["instruct-pix2pix", "image-editing", "diffusers", *(["lora"] if job.use_lora else [])],
    )
    sources = ", ".join(f"`{public_name(each)}`" for each in (job.data, *job.more_data))
    settings = "\n".join(f"| `{name}` | {getattr(job, name)} |" for name in SHOWN)
    editor = base.editor or DiffusionPipeline
    name, kind = job.hub_model_id or folder.name, editor.__name__
    options, call = base.loading, base.example
    if (folder / CODE_FILE).exists():
        kind, options = "DiffusionPipeline", f', custom_pipeline="{name}", trust_remote_code=True'
    elif job.max_sequence_length is not None and "max_sequence_length" in signature(editor.__call__).parameters:
        call = f"{call}, max_sequence_length={job.max_sequence_length}"
    text = f"""# {name}

Edits images as an instruction says (InstructPix2Pix, https://arxiv.org/abs/2211.09800). Trained from `{model}` on
{summary["samples"]} pairs of {sources} for {summary["steps"]} steps with ip2p.

```python
import torch
from diffusers import {kind}
from diffusers.utils import load_image

pipeline = {kind}.from_pretrained("{name}"{options}).to("cuda")
image = load_image("photo.png")
edited = pipeline({call}).images[0]
```

| setting | value |
|---|---|
{settings}

The model takes over what its base and its data show, and their licences bind it. Look at its edits before you build on
them.
"""
    (folder / "README.md").write_text(str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")))


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


def check_may_upload(job: TrainingJob) -> None:
    """Raises ValueError, before the training starts, if it is to be uploaded and there is no token."""
    if job.push_to_hub:
        check_token(get_token())


def upload(job: TrainingJob, base: Architecture, folder: Path) -> str:
    """Uploads the pipeline and its card; returns the address. The token is the environment's or the hub client's."""
    api = HfApi(token=check_token(get_token()))
    name = job.hub_model_id or Path(job.output_dir).resolve().name
    index = json.loads((folder / INDEX).read_text())
    parts = [f"{part}/*" for part, kind in index.items() if isinstance(kind, list) and all(kind)]
    with hub_errors(name):
        repository = api.create_repo(name, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Upload the trained editor",
            allow_patterns=["README.md", INDEX, CODE_FILE, *lora_files(base), *parts],  # not a training
        )
    logger.info("uploaded %s to %s", folder, repository)
    return str(repository)
