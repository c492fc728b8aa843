"""The model card of a trained editor, and its upload: the pipeline and the card, never states, logs or secrets."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token

from ip2p.config import TrainingJob
from ip2p.hub import check_token, public_name, telling_refusals
from ip2p.training.lora import CONV_IN_FILE, LORA_FILE

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
