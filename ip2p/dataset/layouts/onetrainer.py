"""OneTrainer: edited pictures with .txt files, and beside each its original (`-condlabel.png`) and mask."""

from __future__ import annotations

from functools import partial

from ip2p import store
from ip2p.dataset.layouts.layout import Export, Layout, write_folder
from ip2p.sources.folders import SUFFIXES

PLACES = {
    "edited_image": "{stem}{suffix}",
    "reference_image_2": "control_2/{stem}{suffix}",
    **{column: f"{{stem}}{suffix}.png" for column, suffix in SUFFIXES.items()},
}
CONFIG = "concepts.json"


def write_config(export: Export) -> None:
    """Writes a concept per split; all but the training split are for validation."""
    concepts = [
        {
            "name": split,
            "path": str(export.final / split),
            "type": "STANDARD" if split == "train" else "VALIDATION",
            "seed": 0,
            "enabled": True,
            "include_subdirectories": False,
            "text": {"prompt_source": "sample"},
        }
        for split in export.counts
    ]
    store.write_json(export.folder / CONFIG, concepts)


LAYOUT = Layout(
    name="onetrainer",
    trainer="OneTrainer",
    start=(
        "python scripts/train.py --config-path CONFIG.json  "
        f"# with concept_file_name FOLDER/{CONFIG} and custom_conditioning_image true"
    ),
    write_split=partial(write_folder, places=PLACES, text="{stem}.txt", one_line=True),
    write_config=write_config,
)
