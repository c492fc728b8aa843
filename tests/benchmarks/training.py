"""How fast a training is beside diffusers' script: `python -m tests.benchmarks.training --script FILE`.

FILE is `train_instruct_pix2pix.py` (or the XL script, with `--model` an XL), unchanged. Both train the same model
folder on the same pairs with the same flags, in turns, each in a process of its own that uses all cores. A run of few
steps and one of more tell the seconds of a step apart from those of the start; ours encodes every pair in the start,
which the table shows. The last line is ours over the script's, in pairs per second.
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
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ip2p.presets import data_folder

WAYS = ("script", "ours")


@dataclass(frozen=True)
class Run:
    """A training that has ended."""

    seconds: float
    memory: int
    """Peak resident memory in bytes."""
    losses: dict[int, float]


def start(way: str, options: argparse.Namespace, steps: int, folder: Path) -> Run:
    """Trains so many steps in a fresh folder."""
    program = [options.script] if way == "script" else ["-m", "ip2p.training"]
    flags = {
        "pretrained_model_name_or_path": options.model,
        "dataset_name": options.data,
        "original_image_column": "original_image",
        "output_dir": str(folder),
        "resolution": str(options.resolution),
        "train_batch_size": str(options.batch_size),
        "max_train_steps": str(steps),
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
    return Run(time.perf_counter() - began, usage.ru_maxrss * 1024, read_losses(folder / "logs/instruct-pix2pix"))


def as_training_split(data: Path, folder: Path) -> str:
    """The pairs under names that make them a training split, whatever split they are of."""
    files = sorted(data.rglob("*.parquet"))
    for number, path in enumerate(files):
        shutil.copyfile(path, folder / f"train-{number:05d}-of-{len(files):05d}.parquet")
    return str(folder)


def read_losses(folder: Path) -> dict[int, float]:
    """The training's losses by step."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {each.step: each.value for each in events.Scalars("train_loss")}


def measure(way: str, options: argparse.Namespace) -> tuple[float, float, Run]:
    """(seconds of a step, seconds of the start, the longer run)."""
    runs = []
    for steps in (options.few, options.few + options.steps):
        with tempfile.TemporaryDirectory() as name:
            runs.append(start(way, options, steps, Path(name) / "out"))
    few, many = runs
    step = (many.seconds - few.seconds) / options.steps
    return step, few.seconds - options.few * step, many


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
    parser.add_argument("--few", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="that are measured")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    options.data = as_training_split(Path(options.data), Path(scratch.name))
    found: dict[str, list[tuple[float, float, Run]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            found[way].append(measure(way, options))
    rates = {way: options.batch_size / statistics.median(step for step, _, _ in each) for way, each in found.items()}
    print("| way | pairs a second | to the script | start, s | peak memory, MiB | mean loss, first and second half |")
    print("|---|---|---|---|---|---|")
    for way, each in found.items():
        begin = statistics.median(seconds for _, seconds, _ in each)
        memory = max(run.memory for _, _, run in each) / 2**20
        losses = list(each[0][2].losses.values())
        halves = (statistics.mean(some) for some in (losses[: len(losses) // 2], losses[len(losses) // 2 :]))
        ratio, told = rates[way] / rates["script"], ", ".join(f"{half:.4f}" for half in halves)
        print(f"| {way} | {rates[way]:.1f} | {ratio:.2f} | {begin:.1f} | {memory:.0f} | {told} |")
    print(f"\nratio: {rates['ours'] / rates['script']:.2f}")


if __name__ == "__main__":
    main()
