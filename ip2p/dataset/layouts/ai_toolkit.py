"""ostris' AI Toolkit: a folder of edited pictures with .txt files, and a folder of originals of the same names."""

from __future__ import annotations

from functools import partial
from typing import Any

import yaml

from ip2p.dataset.layouts.layout import Export, Layout, write_folder

PLACES = {
    "edited_image": "target/{stem}{suffix}",
    "original_image": "control/{stem}{suffix}",
    "reference_image_2": "control_2/{stem}{suffix}",
    "mask_image": "mask/{stem}{suffix}",
}
CONFIG = "train.yaml"
HEAD = """\
# A LoRA of FLUX.1 Kontext on the pairs of this folder. Change `model` for another base that edits.
# To weight the loss by the masks, add `mask_path` and `mask_min_value` to a dataset.
"""


def write_config(export: Export) -> None:
    """Writes a training job that reads the training split."""
    train = export.final / "train"
    controls = [str(train / name) for name in ("control", *["control_2"] * ("reference_image_2" in export.columns))]
    dataset = {
        "folder_path": str(train / "target"),
        "control_path": controls if len(controls) > 1 else controls[0],
        "caption_ext": "txt",
        "caption_dropout_rate": 0.05,
        "cache_latents_to_disk": True,
        "resolution": [512, 768],
    }
    process: dict[str, Any] = {
        "type": "sd_trainer",
        "training_folder": "output",
        "device": "cuda:0",
        "network": {"type": "lora", "linear": 16, "linear_alpha": 16},
        "save": {"dtype": "float16", "save_every": 250, "max_step_saves_to_keep": 4},
        "datasets": [dataset],
        "train": {
            "batch_size": 1,
            "steps": 3000,
            "gradient_checkpointing": True,
            "noise_scheduler": "flowmatch",
            "optimizer": "adamw8bit",
            "lr": 1e-4,
            "timestep_type": "weighted",
            "dtype": "bf16",
            "disable_sampling": True,
        },
        "model": {"name_or_path": "black-forest-labs/FLUX.1-Kontext-dev", "arch": "flux_kontext", "quantize": True},
    }
    job = {"job": "extension", "config": {"name": export.final.name, "process": [process]}}
    text = HEAD + yaml.safe_dump(job, sort_keys=False, allow_unicode=True)
    (export.folder / CONFIG).write_text(text, encoding="utf-8")


LAYOUT = Layout(
    name="ai-toolkit",
    trainer="ostris' AI Toolkit",
    start=f"python run.py FOLDER/{CONFIG}",
    write_split=partial(write_folder, places=PLACES, text="target/{stem}.txt"),
    write_config=write_config,
)
