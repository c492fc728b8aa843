"""How fast pictures are edited in batches: `python -m tests.benchmarks.editing`.

A table of the same edits with the same model, steps, scales and precision, each way in a process of its own, in turns:
diffusers' InstructPix2Pix pipeline, a picture at a time, as its documentation calls it; and `Editor` in batches. The
last line is the second over the first, in pictures per second. `--model FOLDER` takes an editor or a Stable Diffusion,
which is widened to one with random weights for the picture; `--once` is for a large model.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROUNDS = 3
WAYS = ("one at a time", "in batches")


def edits(options: argparse.Namespace, num: int) -> tuple[list[Image.Image], list[str], list[int]]:
    """Pictures of noise, instructions and seeds: what is drawn does not matter to the time."""
    chance = np.random.default_rng(0)
    pictures = [Image.fromarray(chance.integers(0, 256, (options.size, options.size, 3), np.uint8)) for _ in range(num)]
    return pictures, [f"make it snowy and add {number} trees" for number in range(num)], list(range(num))


def one_at_a_time(options: argparse.Namespace, num: int) -> None:
    """A call of diffusers' pipeline per picture."""
    import torch
    from diffusers import StableDiffusionInstructPix2PixPipeline

    from ip2p.models.loading import load_once, resolve_device

    def load() -> Any:
        dtype = getattr(torch, options.dtype)
        pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
            options.model, torch_dtype=dtype, safety_checker=None
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(resolve_device("auto"))

    pipeline = load_once("peer", load)
    for picture, instruction, seed in zip(*edits(options, num), strict=True):
        pipeline(
            instruction,
            image=picture,
            num_inference_steps=options.steps,
            guidance_scale=7.5,
            image_guidance_scale=1.5,
            generator=torch.Generator().manual_seed(seed),
        )


def in_batches(options: argparse.Namespace, num: int) -> None:
    """All pictures at once."""
    from ip2p.editing import Editor, Knobs

    knobs = Knobs(num_inference_steps=options.steps, resolution=options.size)
    pictures, instructions, seeds = edits(options, num)
    editor = Editor(options.model, dtype=options.dtype, knobs=knobs)
    editor.edit_all(pictures, instructions, seeds=seeds, batch_size=options.batch_size)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Pictures per second and peak memory of one way, in this process; the model is loaded before."""
    import torch

    from ip2p.models.loading import keep_freed_memory

    keep_freed_memory()
    way = dict(zip(WAYS, (one_at_a_time, in_batches), strict=True))[options.way]
    way(options, 0 if options.once else 2)
    started = time.perf_counter()
    way(options, options.pictures)
    seconds = time.perf_counter() - started
    on_card = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    memory = on_card or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"rate": options.pictures / seconds, "memory": memory}


def make_editor(options: argparse.Namespace, folder: Path) -> str:
    """Widens a text-to-image model to an editor; returns one that is an editor as it is."""
    from ip2p.models.components import read_index
    from ip2p.presets import shapes
    from tests.tiny import write_tiny_editor

    model = options.model or shapes().rendering.model
    if "InstructPix2Pix" in read_index(model, None)["_class_name"]:
        return str(model)
    return str(write_tiny_editor(folder, Path(model)))


def table(options: argparse.Namespace) -> float:
    """Prints the comparison; returns batches over one at a time."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(1 if options.once else ROUNDS):
        for way, results in found.items():
            command = [sys.executable, "-m", "tests.benchmarks.editing", *sys.argv[1:]]
            command += ["--model", options.model, "--size", str(options.size), "--way", way]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{way}: {done.stderr.strip().splitlines()[-1]}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
    rates = {way: statistics.median(each["rate"] for each in results) for way, results in found.items()}
    one, many = (rates[way] for way in WAYS)
    print(f"{options.pictures} pictures of {options.size} pixels, {options.steps} steps, {options.dtype}")
    print("| way | pictures a second | to one at a time | peak memory, MiB |\n|---|---|---|---|")
    for way, rate in rates.items():
        memory = max(each["memory"] for each in found[way]) / 2**20
        print(f"| {way} | {rate:.3g} | {rate / one:.2f} | {memory:.0f} |")
    return many / one


def main() -> None:
    """Compares, or measures one way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder of an editor or of a Stable Diffusion; the shapes domain's")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, metavar="PIXELS", help="side of the pictures")
    parser.add_argument("--once", action="store_true", help="one round, without one to warm up, for a large model")
    parser.add_argument("--way", default="", choices=("", *WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.model = make_editor(options, Path(folder))
        print(f"\nratio: {table(options):.2f}")


if __name__ == "__main__":
    main()
