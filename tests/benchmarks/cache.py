"""How long a filled latent cache takes to open, and a batch to come out of it: `python -m tests.benchmarks.cache`.

The caches have the latents of pairs of 64 x 64 pixels (or `--side`) and the texts of Stable Diffusion, in parts as the
trainer writes them. Parts are hard links to one, so that a million pairs fit on a small disk; what is read from them is
in the page cache of the system, so the disk's own speed is not part of the figures. Each size is opened in a process of
its own, whose memory is what it takes beyond the interpreter and torch.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from ip2p.training.cache import FILLED, LatentCache
from ip2p.training.draws import draw_samples
from ip2p.training.filling import ROWS_PER_PART
from ip2p.training.text_cache import TEXTS_PER_PART

BATCH, BATCHES = 16, 50


def write_cache(folder: Path, num_pairs: int, side: int) -> None:
    """Writes parts of random latents, whose texts are as many as pairs."""
    latents = {name: torch.randn(ROWS_PER_PART, 1, 4, side, side).half() for name in ("mean", "deviation", "condition")}
    sizes = {"time_ids": torch.zeros(ROWS_PER_PART, 1, 6, dtype=torch.long)}
    numbers = {name: torch.arange(ROWS_PER_PART) for name in ("prompt", "row")}
    first = {"rows": folder / "rows-00000.safetensors", "text": folder / "text-00000.safetensors"}
    save_file(latents | sizes | numbers, first["rows"], metadata={"dropped": "{}"})
    save_file({"text": torch.randn(TEXTS_PER_PART, 77, 64).half()}, first["text"])
    for number in range(1, num_pairs // ROWS_PER_PART):
        for kind, path in first.items():
            os.link(path, folder / f"{kind}-{number:05d}.safetensors")
    (folder / FILLED).write_text("{}")


def measure(folder: Path) -> None:
    """Prints the pairs, the seconds to open, the milliseconds of a batch, and the memory in MiB."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    cache = LatentCache(folder, 0.0)
    cache.take(draw_samples(len(cache), 0, 0, BATCH), [False] * BATCH)
    opened, seconds = time.perf_counter() - started, []
    for number in range(BATCHES):
        began = time.perf_counter()
        cache.take(draw_samples(len(cache), 0, BATCH * number, BATCH), [False] * BATCH)
        seconds.append(time.perf_counter() - began)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"| {len(cache):,} | {opened:.2f} | {1000 * statistics.median(seconds):.2f} | {memory:.0f} |")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_240, 102_400, 1_024_000], help="multiples of 1,024")
    parser.add_argument("--side", type=int, default=8, help="of the latents")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    print(
        f"| pairs | to open and the first batch of {BATCH}, s | a further batch, ms | memory, MiB |\n|---|---|---|---|"
    )
    for num_pairs in options.pairs:
        with tempfile.TemporaryDirectory() as name:
            write_cache(Path(name), num_pairs, options.side)
            command = [sys.executable, "-m", "tests.benchmarks.cache", "--measure", name]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main()
