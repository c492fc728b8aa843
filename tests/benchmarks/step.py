"""What a training step takes, and how much of it is the denoiser: `python -m tests.benchmarks.step --model FOLDER`.

Takes steps of our trainer on drawn pairs, then the denoiser's forward and backward passes alone, on the inputs that a
step gave it: what is left is draws, loss, clipping, optimizer and average. Tells operations a second too, to compare
with the device's own rate (`tests/benchmarks/flops.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ip2p.models.loading import keep_freed_memory
from ip2p.training.trainer import Trainer
from tests.benchmarks.drawn_pairs import write_drawn_pairs
from tests.benchmarks.flops import count_operations, peak_memory, seconds_of
from tests.test_training_sharding import trainer_of

WARM_UP = 2


@dataclass(frozen=True)
class Measured:
    """Medians of some steps."""

    pairs: float
    """A second."""
    step: float
    """Seconds."""
    denoiser: float
    """Seconds of its forward and backward pass alone."""
    operations: float
    """Of a step."""
    memory: float
    """Peak bytes."""

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.step

    @property
    def share(self) -> float:
        """Of the step that is the denoiser."""
        return self.denoiser / self.step


class Passes:
    """The denoiser's forward and backward pass on the inputs of its last call."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        trainer.network.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, network: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.inputs = arguments, named

    def __call__(self) -> None:
        """Makes both passes and drops the gradients."""
        arguments, named = self.inputs
        with self.trainer._attention():
            prediction = self.trainer.network(*arguments, **named)[0]
            self.trainer.accelerator.backward(prediction.float().square().mean())
        self.trainer.trained.optimizer.zero_grad(set_to_none=True)


def measure(data: Path, model: str, folder: Path, steps: int, **settings: Any) -> Measured:
    """Takes steps of a training with these settings."""
    trainer = trainer_of(data, Path(model), folder, **settings)
    device = trainer.accelerator.device.type
    for number in range(WARM_UP):
        trainer.step(number)
    taken = [seconds_of(partial(trainer.step, number), device) for number in range(WARM_UP, WARM_UP + steps)]
    memory = peak_memory(device)
    passes = Passes(trainer)
    operations = count_operations(partial(trainer.step, WARM_UP + steps))
    alone = [seconds_of(passes, device) for _ in range(WARM_UP + steps)][WARM_UP:]
    seconds = statistics.median(taken)
    return Measured(settings["train_batch_size"] / seconds, seconds, statistics.median(alone), operations, memory)


def main() -> None:
    """Prints the figures, the last line as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="such as a folder of `tests/benchmarks/architectures.py`")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--pairs", type=int, default=8, help="that are drawn to train on")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--xformers", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        data = write_drawn_pairs(Path(name) / "data", options.pairs, options.resolution)
        settings = {
            "resolution": options.resolution,
            "train_batch_size": options.batch_size,
            "mixed_precision": options.precision,
            "enable_xformers_memory_efficient_attention": options.xformers,
            "compile": options.compile,
        }
        found = measure(data, options.model, Path(name) / "out", options.steps, **settings)
    print(f"{found.step:.3f} s a step, {found.pairs:.2f} pairs a second, {found.memory / 2**20:.0f} MiB at most")
    print(f"the denoiser's passes alone take {found.denoiser:.3f} s, {found.share:.0%} of the step")
    print(f"{found.operations / 1e12:.3f} tera-operations a step, {found.rate / 1e12:.3f} a second")
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
