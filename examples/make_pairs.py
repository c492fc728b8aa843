"""Makes pairs from your own triplets in Python, with the shipped models: less than a minute on two cores.

Run it with a folder for the results: `python examples/make_pairs.py runs/my-pairs`. For Stable Diffusion, start from
another preset, such as `presets.sd15()`. Running it again does no finished work again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import concatenate_datasets, load_dataset

from ip2p import dataset, presets, prompts, rendering
from ip2p.config import PipelineConfig
from ip2p.store import RunFolder

TRIPLETS = (
    ("a large red circle on a beige background", "make the circle blue", "a large blue circle on a beige background"),
    ("a large red square on a gray background", "turn the square into a star", "a large red star on a gray background"),
    ("a small purple ring on a pink background", "remove the ring", "an empty pink background"),
)
"""Captions, instructions and edited captions."""


def configure(out: Path) -> PipelineConfig:
    """Returns the default's settings for these triplets, with four candidates each and the best of them kept."""
    out.mkdir(parents=True, exist_ok=True)
    names = ("original_prompt", "edit_prompt", "edited_prompt")
    lines = [json.dumps(dict(zip(names, triplet, strict=True))) for triplet in TRIPLETS]
    (out / "triplets.jsonl").write_text("".join(f"{line}\n" for line in lines))
    config = presets.shapes()
    return replace(
        config,
        out=out,
        prompts=replace(config.prompts, captions=str(out / "triplets.jsonl")),
        rendering=replace(config.rendering, num_candidates=4, per_edit_type={}),
        filtering=replace(config.filtering, selection="best", max_pairs_per_triplet=1),
    )


def make_pairs(config: PipelineConfig) -> None:
    """Runs the stages from triplets to a dataset, shard by shard."""
    for number in range(prompts.num_shards(config)):
        prompts.write_shard(config, number)
        rendering.write_shard(config, number)
    dataset.write_dataset(config)


def show_candidates(config: PipelineConfig) -> None:
    """Prints the scores and the verdict of every candidate, including rejected ones."""
    columns = ["edit_prompt", "candidate", "clip_direction", "clip_image", "reason"]
    for path in RunFolder(config.out).shards("candidates"):
        for row in pq.read_table(path, columns=columns).to_pylist():
            verdict = row["reason"] or "accepted"
            scores = f"direction {row['clip_direction']:.2f}, images {row['clip_image']:.2f}"
            print(f"{row['edit_prompt']:<30} #{row['candidate']}  {scores}  {verdict}")


def save_images(config: PipelineConfig) -> list[Path]:
    """Saves both images of every accepted pair and returns their paths."""
    folder = config.out / "images"
    folder.mkdir(exist_ok=True)
    splits: Any = load_dataset(str(RunFolder(config.out).dataset))
    paths = []
    for row in concatenate_datasets(list(splits.values())):
        for side in ("original", "edited"):
            paths.append(folder / f"{row['edit_prompt'].replace(' ', '-')}-{side}.png")
            row[f"{side}_image"].save(paths[-1])
    return paths


def main() -> None:
    """Makes the pairs in the folder named on the command line."""
    config = configure(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example-pairs"))
    make_pairs(config)
    show_candidates(config)
    print(*save_images(config), sep="\n")


if __name__ == "__main__":
    main()
