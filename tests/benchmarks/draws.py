"""What a process of several pays for a step's random numbers: `python tests/benchmarks/draws.py`.

Draws batches of 16 samples with latents of 4 x 32 x 32 in one process of 1, of 8 and of 64, each sample's numbers alone
and, as earlier versions did, those of all processes, in turns. It prints the shortest times, which other work on the
machine lengthens least, and their ratio.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from ip2p.config import TrainingConfig
from ip2p.training.draws import SampleStream

LATENTS = torch.Size((4, 32, 32))
ROUNDS = {1: 40, 8: 20, 64: 8}
"""Batches drawn each way, by the number of processes."""


def seconds_of(stream: SampleStream, micro_step: int) -> float:
    started = time.perf_counter()
    stream.draws(micro_step)
    return time.perf_counter() - started


def main() -> None:
    """Alternates the two ways, so that a slow moment hits both."""
    torch.set_num_threads(1)
    for num_processes, rounds in ROUNDS.items():
        config = TrainingConfig(train_batch_size=16)
        own = SampleStream(config, 1000, LATENTS, torch.ones(1000), num_processes - 1, num_processes)
        streams = [own, replace(own, drawing="by_batch")]
        found = [[seconds_of(stream, micro_step) for stream in streams] for micro_step in range(rounds)]
        by_sample, by_batch = (1000 * min(column) for column in zip(*found, strict=True))
        print(f"one of {num_processes}: each sample's {by_sample:.2f} ms, all processes' {by_batch:.2f} ms", end=", ")
        print(f"ratio {by_batch / by_sample:.2f}")


if __name__ == "__main__":
    main()
