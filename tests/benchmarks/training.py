"""How fast a training is beside diffusers' script: `python -m tests.benchmarks.training --script FILE`.

FILE is `train_instruct_pix2pix.py` (or the XL script, with `--model` an XL), unchanged. Both train the same model
folder on the same pairs with the same flags, in turns, each in a process of its own that uses all cores. The seconds of
a step are the median between the times that tensorboard notes, after a warm-up; what else a run takes is its start, in
which ours encodes every pair. The last line is ours over the script's, in pairs per second.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ip2p.presets import data_folder

WAYS = ("script", "ours")
WARM_UP = 5
"""Steps that are not counted."""


@dataclass(frozen=True)
class Run:
    """A training that has ended."""

    seconds: float
    memory: int
    """Peak resident memory in bytes."""
    losses: list[float]
    steps: list[float]
    """Seconds of each, after the warm-up."""


def train(way: str, options: argparse.Namespace, folder: Path) -> Run:
    """Trains in a fresh folder."""
    program = [options.script] if way == "script" else ["-m", "ip2p.training"]
    flags = {
        "pretrained_model_name_or_path": options.model,
        "dataset_name": options.data,
        "original_image_column": "original_image",
        "output_dir": str(folder),
        "resolution": str(options.resolution),
        "train_batch_size": str(options.batch_size),
        "max_train_steps": str(options.steps + WARM_UP),
        "learning_rate": "1e-4",
        "lr_warmup_steps": "0",
        "conditioning_dropout_prob": "0.05",
        "checkpointing_steps": "1000000",
        "mixed_precision": options.precision,
        "seed": "0",
        **({"cache_dir": str(folder.parent / "datasets")} if way == "script" else {"log_every": "1"}),
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    environment = os.environ | {"TQDM_DISABLE": "1", **({} if options.gpu else {"ACCELERATE_USE_CPU": "1"})}
    began = time.perf_counter()
    with (folder.parent / "log").open("w") as log:
        command = [sys.executable, *program, *words, "--random_flip", "--use_ema"]
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        _, code, usage = os.wait4(child.pid, 0)
    if code:
        raise SystemExit((folder.parent / "log").read_text()[-3000:])
    return Run(time.perf_counter() - began, usage.ru_maxrss * 1024, *read_log(folder / "logs/instruct-pix2pix"))


def as_training_split(data: Path, folder: Path) -> str:
    """The pairs under names that make them a training split, whatever split they are of."""
    files = sorted(data.rglob("*.parquet"))
    for number, path in enumerate(files):
        shutil.copyfile(path, folder / f"train-{number:05d}-of-{len(files):05d}.parquet")
    return str(folder)


def read_log(folder: Path) -> tuple[list[float], list[float]]:
    """The losses of all steps, and the seconds of those after the warm-up."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    noted = events.Scalars("train_loss")
    times = [each.wall_time for each in noted[WARM_UP:]]
    return [each.value for each in noted], [after - before for before, after in pairwise(times)]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shipped = data_folder()
    parser.add_argument("--script", required=True, help="diffusers' train_instruct_pix2pix.py or its XL sister")
    parser.add_argument("--model", default=str(shipped / "shapes/stable-diffusion"))
    parser.add_argument("--data", default=str(shipped / "sample"), help="folder of parquet files")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--steps", type=int, default=60, help="that are measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    options.data = as_training_split(Path(options.data), Path(scratch.name))
    found: dict[str, list[Run]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as name:
                found[way].append(train(way, options, Path(name) / "out"))
    seconds = {way: statistics.median(step for run in runs for step in run.steps) for way, runs in found.items()}
    rates = {way: options.batch_size / step for way, step in seconds.items()}
    print("| way | pairs a second | to the script | start, s | peak memory, MiB | mean loss, first and second half |")
    print("|---|---|---|---|---|---|")
    for way, runs in found.items():
        begin = statistics.median(run.seconds - sum(run.steps) for run in runs)
        memory, losses = max(run.memory for run in runs) / 2**20, runs[0].losses
        halves = (statistics.mean(some) for some in (losses[: len(losses) // 2], losses[len(losses) // 2 :]))
        ratio, told = rates[way] / rates["script"], ", ".join(f"{half:.4f}" for half in halves)
        print(f"| {way} | {rates[way]:.1f} | {ratio:.2f} | {begin:.1f} | {memory:.0f} | {told} |")
    print(f"\nratio: {rates['ours'] / rates['script']:.2f}")


if __name__ == "__main__":
    main()
