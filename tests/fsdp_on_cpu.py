"""`ip2p.training` as `accelerate launch` starts it, where accelerate takes gloo on the CPU for several GPUs.

accelerate splits weights on accelerators only. Two answers of its state are replaced; all else is its own path.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import Tensor

from ip2p.training.__main__ import main
from ip2p.training.data import open_rows
from ip2p.training.flags import parse
from ip2p.training.run import new_accelerator, new_trainer, open_pairs
from ip2p.training.sharding import local

SIZES = "IP2P_TEST_SIZES"
"""Names a folder into which each process writes the bytes that it holds, instead of a whole training."""


def backend(self: PartialState, *_: Any, **__: Any) -> tuple[str, DistributedType]:
    """Instead of nccl on several GPUs."""
    return "gloo", DistributedType.MULTI_GPU


def set_device(self: PartialState) -> None:
    """Instead of the GPU of this process."""
    self.device = torch.device("cpu")


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Of the parts in this process."""
    return sum(local(tensor).numel() * tensor.element_size() for tensor in tensors)


def measure(words: list[str], folder: Path) -> None:
    """Takes one step and writes how many bytes this process holds."""
    job = parse(words)
    accelerator = new_accelerator(job)
    source = open_pairs(open_rows(job.data, job), job, accelerator, folder)
    trainer, _ = new_trainer(source, job, accelerator)
    trainer.step(0)
    trained = trainer.trained
    states = [value for state in trained.optimizer.state.values() for value in state.values() if value.ndim]
    found = {"all": sum(parameter.numel() for parameter in trained.denoiser.parameters()) * 4}
    found |= {"weights": num_bytes(trained.denoiser.parameters()), "states": num_bytes(states)}
    found["average"] = num_bytes(trained.average.parameters()) if trained.average is not None else 0
    (folder / f"sizes-{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.end_training()


def train(words: list[str]) -> int:
    """`python -m ip2p.training`, or what `SIZES` asks for."""
    PartialState._prepare_backend = backend
    PartialState.set_device = set_device
    if SIZES not in os.environ:
        return main(words)
    measure(words, Path(os.environ[SIZES]))
    return 0


if __name__ == "__main__":
    sys.exit(train(sys.argv[1:]))
