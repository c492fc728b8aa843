"""How many operations a pair takes, part by part: `python -m tests.benchmarks.operations`.

Counted on models of the real architectures that have shapes and no values, so that it takes seconds on any machine. By
these numbers the script's step, which encodes both pictures each time, is compared with one that does not; a ratio in
time beyond theirs is one of efficiency.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ip2p.shapes.train.text import write_tokenizer
from tests.benchmarks.architectures import BASES, CLIP_LENGTH, Shape
from tests.benchmarks.flops import count_operations

MODELS = {"sd15": (256, 512), "sdxl": (256, 512, 1024)}
"""Pixels on a side by base."""


def new_pipeline(name: str) -> Any:
    """An editor on torch's device for shapes alone."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_tokenizer(Path(folder), CLIP_LENGTH)
    with torch.device("meta"):
        return BASES[name](tokenizer, Shape(is_editor=True))


def count(pipeline: Any, pixels: int) -> dict[str, int]:
    """Operations of a pass of the denoiser, of one with its gradient, of encoding, of decoding and of a text."""
    unet, vae, encoders = pipeline.unet, pipeline.vae.requires_grad_(False), [pipeline.text_encoder]
    encoders += [pipeline.text_encoder_2] if hasattr(pipeline, "text_encoder_2") else []
    side = pixels // 8
    with torch.device("meta"):
        noised, latents = torch.zeros(1, 8, side, side), torch.zeros(1, 4, side, side)
        pictures = torch.zeros(2, 3, pixels, pixels)
        texts = torch.zeros(1, CLIP_LENGTH, unet.config.cross_attention_dim)
        tokens = torch.zeros(1, CLIP_LENGTH, dtype=torch.long)
        added = {"time_ids": torch.zeros(1, 6)}
        if len(encoders) == 2:
            added["text_embeds"] = torch.zeros(1, encoders[1].config.projection_dim)

        def predict() -> Any:
            return unet(noised, torch.zeros(1), texts, added_cond_kwargs=added).sample

        with torch.no_grad():
            found = {
                "denoiser": count_operations(predict),
                "encoded": count_operations(partial(vae.encode, pictures)),
                "decoded": count_operations(partial(vae.decode, latents)),
                "text": sum([count_operations(partial(encoder, tokens)) for encoder in encoders]),
            }
        return found | {"trained": count_operations(lambda: predict().sum().backward())}


def main() -> None:
    """Prints the table, in tera-operations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=list(MODELS), choices=list(MODELS))
    bases = parser.parse_args().bases
    print("| base | pixels | denoiser, a pass | with its gradient | both pictures encoded | one decoded | ", end="")
    print("a text | step that encodes to one that does not |")
    print("|---|---|---|---|---|---|---|---|")
    for name in bases:
        pipeline = new_pipeline(name)
        for pixels in MODELS[name]:
            found = count(pipeline, pixels)
            order = ("denoiser", "trained", "encoded", "decoded", "text")
            numbers = " | ".join(f"{found[what] / 1e12:.3f}" for what in order)
            ratio = (found["trained"] + found["encoded"] + found["text"]) / found["trained"]
            print(f"| {name} | {pixels} | {numbers} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
