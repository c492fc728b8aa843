"""DiffSynth-Studio: a metadata.jsonl whose `image`, `edit_image` and `prompt` are named by `--data_file_keys`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ip2p.dataset.layouts.layout import Layout, Sample, Values, write_folder

PLACES = {
    "edited_image": "target/{stem}{suffix}",
    "original_image": "control/{stem}{suffix}",
    "reference_image_2": "control_2/{stem}{suffix}",
    "mask_image": "mask/{stem}{suffix}",
}


def describe(sample: Sample, paths: Mapping[str, str]) -> Values:
    """Returns a line of the table; `edit_image` is a list if there are two references."""
    references = [paths[column] for column in ("original_image", "reference_image_2") if column in paths]
    mask = {"mask_image": paths["mask_image"]} if "mask_image" in paths else {}
    return {
        **sample.values,
        **mask,
        "image": paths["edited_image"],
        "edit_image": references if len(references) > 1 else references[0],
        "prompt": sample.texts["edit_prompt"],
    }


LAYOUT = Layout(
    name="diffsynth",
    trainer="DiffSynth-Studio",
    start=(
        "accelerate launch examples/qwen_image/model_training/train.py --dataset_base_path FOLDER/train "
        "--dataset_metadata_path FOLDER/train/metadata.jsonl --data_file_keys image,edit_image "
        "--extra_inputs edit_image …"
    ),
    write_split=partial(write_folder, places=PLACES, describe=describe),
)
