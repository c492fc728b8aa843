"""kohya's musubi-tuner: a metadata.jsonl whose lines name the edited picture, its control pictures and the caption."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ip2p.dataset.layouts.layout import TABLE, Export, Layout, Sample, Values, write_folder

PLACES = {
    "edited_image": "target/{stem}{suffix}",
    "original_image": "control/{stem}{suffix}",
    "reference_image_2": "control_2/{stem}{suffix}",
    "mask_image": "mask/{stem}{suffix}",
}
KEYS = {"edited_image": "image_path", "original_image": "control_path", "reference_image_2": "control_path_1"}
"""Keys of pictures in a line; its own loader reads `control_path` as the first of several."""
CONFIG = "musubi.toml"
"""Paths in the table are relative until the folder's place is known."""


def describe(sample: Sample, paths: Mapping[str, str]) -> Values:
    """Returns a line of the table."""
    named = {KEYS.get(column, column): path for column, path in paths.items()}
    return sample.values | named | {"caption": sample.texts["edit_prompt"]}


def write_split(samples: Iterable[Sample], folder: Path) -> None:
    """Writes the pictures and the table of a split."""
    write_folder(samples, folder, PLACES, describe=describe)


def write_config(export: Export) -> None:
    """Writes the dataset config of the training split, and the paths in the tables as absolute ones."""
    for split in export.counts:
        _make_absolute(export.folder / split / TABLE, export.final / split)
    table = export.final / "train" / TABLE
    lines = [
        "[general]",
        "resolution = [1024, 1024]",
        "batch_size = 1",
        "enable_bucket = true",
        "bucket_no_upscale = true",
        "",
        "[[datasets]]",
        f"image_jsonl_file = {json.dumps(str(table), ensure_ascii=False)}",
        f"cache_directory = {json.dumps(str(export.final / 'cache'), ensure_ascii=False)}",
        "num_repeats = 1",
    ]
    (export.folder / CONFIG).write_text("\n".join([*lines, ""]), encoding="utf-8")


def _make_absolute(table: Path, root: Path) -> None:
    """Rewrites the paths of a table, which its loader does not take relative to the table."""
    copy = table.with_suffix(".partial")
    with table.open(encoding="utf-8", newline="\n") as lines, copy.open("w", encoding="utf-8", newline="\n") as out:
        for line in lines:
            row = json.loads(line)
            row |= {key: str(root / row[key]) for key in KEYS.values() if key in row}
            out.write(f"{json.dumps(row, ensure_ascii=False)}\n")
    copy.replace(table)


LAYOUT = Layout(
    name="musubi",
    trainer="kohya's musubi-tuner",
    start=f"accelerate launch src/musubi_tuner/flux_2_train_network.py --dataset_config FOLDER/{CONFIG} …",
    write_split=write_split,
    write_config=write_config,
)
