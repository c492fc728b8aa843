"""How much faster a training step is on a CPU when freed memory is kept: `python tests/benchmarks/allocator.py`.

Runs the shapes domain's denoiser for some steps in two fresh processes, one with glibc's defaults and one after
`ip2p.models.loading.keep_freed_memory`, in turns, and prints both medians and their ratio.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

STEPS, ROUNDS, BATCH_SIZE = 8, 3, 32


def measure(keep: bool) -> float:
    """Median seconds of a forward and backward pass in this process."""
    import torch

    from ip2p.models.loading import keep_freed_memory
    from ip2p.shapes.train.unet import new_unet

    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    unet = new_unet(128).to(memory_format=torch.channels_last)
    latents, text = torch.randn(BATCH_SIZE, 4, 16, 16), torch.randn(BATCH_SIZE, 32, 128)
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        unet(latents, torch.randint(1000, (BATCH_SIZE,)), text).sample.square().mean().backward()
        unet.zero_grad()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def main() -> None:
    """Alternates the two settings, each in a process of its own."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1] == "keep")))
        return
    found: dict[str, list[float]] = {"default": [], "keep": []}
    for _ in range(ROUNDS):
        for name, seconds in found.items():
            output = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True).stdout
            seconds.append(json.loads(output))
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    print(f"default {medians['default']:.3f} s, keep {medians['keep']:.3f} s a step")
    print(f"ratio {medians['default'] / medians['keep']:.2f}")


if __name__ == "__main__":
    main()
