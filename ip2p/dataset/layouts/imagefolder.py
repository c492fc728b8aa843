"""The image folder of `datasets`: pictures and a metadata.jsonl, which diffusers' scripts and our own trainer read."""

from __future__ import annotations

from functools import partial

from ip2p.dataset.layouts.layout import Layout, write_folder
from ip2p.sources.columns import PICTURES

LAYOUT = Layout(
    name="imagefolder",
    trainer="`datasets`, diffusers' scripts and `ip2p train --data`",
    start=(
        "accelerate launch train_instruct_pix2pix.py --dataset_name FOLDER --original_image_column original_image "
        "--edited_image_column edited_image --edit_prompt_column edit_prompt"
    ),
    write_split=partial(write_folder, places={column: f"{column}/{{stem}}{{suffix}}" for column in PICTURES}),
)
