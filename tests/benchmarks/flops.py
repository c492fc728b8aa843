"""Counts the multiplications of what a benchmark runs, and measures how fast the device could do them.

A rate is told as a share of the device's own: of large matrix products in the same precision, measured in the same run.
Counted are matrix products, convolutions and attention, two operations for a multiplication and its sum; an attention
whose map is never made counts as if it were.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

ROUNDS = 10
MATRIX = {"cuda": 8192, "cpu": 2048}
"""Rows and columns of the product."""


def _forward(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
"""Which torch's counter leaves out; it has those of GPUs."""


def synchronise(device: str) -> None:
    """Waits for what was asked of the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Seconds of a call, and of the work that it leaves to the device."""
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started


def count_operations(call: Callable[[], object]) -> int:
    """Operations of a call, which is made; what is compiled runs as it was written."""
    as_written = torch.compiler.set_stance("force_eager")
    with as_written, FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        call()
    return int(counter.get_total_flops())


def matrix_rate(device: str, dtype: torch.dtype, size: int | None = None) -> float:
    """Operations a second of a product of square matrices of random numbers; the median of some."""
    size = size or MATRIX[device]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = [seconds_of(lambda: left @ right, device) for _ in range(ROUNDS + 3)]
    return 2 * size**3 / statistics.median(seconds[3:])


def peak_memory(device: str) -> int:
    """Peak bytes of this process: on the card if it has one, else resident."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
