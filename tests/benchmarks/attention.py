"""How long attention takes with explicit maps and with torch's fused kernel: `python tests/benchmarks/attention.py`.

On a CPU: forward and backward, in turns, by positions and precision; `ip2p.training.attention` chooses by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p.models.loading import keep_freed_memory

ROUNDS, HEADS, DEPTH = 7, 4, 32


def explicit(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Computes the maps, then their product with the values."""
    maps = (query @ key.mT * DEPTH**-0.5).softmax(-1)
    return torch.matmul(maps, value)


def seconds(attend: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    """Seconds of one forward and backward pass."""
    started = time.perf_counter()
    attend(*inputs).sum().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


def main() -> None:
    """Prints the least milliseconds of each and their ratio."""
    keep_freed_memory()
    for positions in (64, 256, 1024):
        for dtype in (torch.bfloat16, torch.float32):
            shape = (max(1, 1024 // positions), HEADS, positions, DEPTH)
            inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]
            kernels = {"fused": F.scaled_dot_product_attention, "explicit": explicit}
            rounds = [{name: seconds(attend, inputs) for name, attend in kernels.items()} for _ in range(ROUNDS)]
            best = {name: min(each[name] for each in rounds[1:]) for name in kernels}
            times = ", ".join(f"{name} {value * 1e3:.2f} ms" for name, value in best.items())
            print(f"{positions} positions, {dtype}: {times}; explicit / fused {best['explicit'] / best['fused']:.2f}")


if __name__ == "__main__":
    main()
