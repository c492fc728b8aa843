"""SimpleTuner: a dataset of edited pictures with .txt files, joined to one of reference pictures of the same names."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

from ip2p import store
from ip2p.dataset.layouts.layout import Export, Layout, write_folder
from ip2p.images import read_size

PLACES = {
    "edited_image": "target/{stem}{suffix}",
    "original_image": "control/{stem}{suffix}",
    "reference_image_2": "control_2/{stem}{suffix}",
    "mask_image": "mask/{stem}.png",
}
CONFIG = "multidatabackend.json"
REFERENCES = {"original_image": "control", "reference_image_2": "control_2"}
LARGEST_SIDE = 1024
"""The largest resolution that the config asks for."""
NUM_MEASURED = 100
"""Pictures whose size is looked at."""


def write_config(export: Export) -> None:
    """Writes the datasets of the training split, the references of each, and the cache of text embeddings."""
    train, cache = export.final / "train", export.final / "cache"
    references = [folder for column, folder in REFERENCES.items() if column in export.columns]
    resolution = usual_side(export.folder / "train" / "target")
    shared: dict[str, Any] = {"type": "local", "resolution": resolution, "resolution_type": "pixel"}
    edited = {
        "id": "edited",
        **shared,
        "dataset_type": "image",
        "instance_data_dir": str(train / "target"),
        "cache_dir_vae": str(cache / "target"),
        "conditioning_data": references,
        "caption_strategy": "textfile",
        "disable_multiline_split": True,
    }
    originals = [
        {
            "id": folder,
            **shared,
            "dataset_type": "conditioning",
            "conditioning_type": "reference_strict",
            "source_dataset_id": "edited",
            "instance_data_dir": str(train / folder),
            "cache_dir_vae": str(cache / folder),
            "caption_strategy": None,
        }
        for folder in references
    ]
    texts = {
        "id": "texts",
        "type": "local",
        "dataset_type": "text_embeds",
        "default": True,
        "cache_dir": str(cache / "texts"),
    }
    store.write_json(export.folder / CONFIG, [edited, *originals, texts])


def usual_side(folder: Path) -> int:
    """Returns the shorter side of a folder's first pictures, the median, at most 1024.

    SimpleTuner enlarges what is smaller than the config's resolution, and rounds areas but not sides.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix != ".txt")
    sides = [min(read_size(path)) for path in paths[:NUM_MEASURED]]
    return min(LARGEST_SIDE, round(statistics.median(sides))) if sides else LARGEST_SIDE


LAYOUT = Layout(
    name="simpletuner",
    trainer="SimpleTuner",
    start=f"simpletuner train  # with data_backend_config FOLDER/{CONFIG} in config/config.json",
    write_split=partial(write_folder, places=PLACES, text="target/{stem}.txt", one_suffix=True),
    write_config=write_config,
)
