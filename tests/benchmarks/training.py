"""How fast a training is beside diffusers' script: `python -m tests.benchmarks.training --script FILE`.

FILE is `train_instruct_pix2pix.py` (or the XL script, with `--model` an XL), unchanged. Both train the same model
folder on the same pairs with the same flags, in turns, each in a process of its own that uses all cores. A row is told
for each way and number of steps: seconds from the start of the process to the end of the first step, of which ours uses
some to build its cache; of a step, the median between the times that tensorboard notes, after a warm-up; and from start
to end, the export included. The last lines are ours over the script's.

    python -m tests.benchmarks.architectures sd15 models/sd15
    python -m tests.benchmarks.training --script FILE --model models/sd15 --pairs 100 --resolution 256 \\
        --precision bf16 --batch-size 2 --steps 4 100 --rounds 1
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ip2p.presets import data_folder
from ip2p.training.launching import FINISHED
from tests.benchmarks.drawn_pairs import write_drawn_pairs

WAYS = ("script", "ours")
WARM_UP = 5
"""Steps that are not counted in the seconds of a step, of those that are taken at most half."""


@dataclass(frozen=True)
class Run:
    """A training that has ended. Times are in seconds since its process started."""

    total: float
    memory: int
    """Peak bytes: on the card with `--gpu`, else resident."""
    caching: float
    """Seconds of building the cache; 0 for the script."""
    losses: list[float]
    times: list[float]
    """When each step had ended."""

    @property
    def steps(self) -> list[float]:
        """Seconds of each step after the warm-up."""
        warm_up = min(WARM_UP, len(self.times) // 2)
        return [after - before for before, after in pairwise(self.times[warm_up:])]


@dataclass(frozen=True)
class Row:
    """Medians over the rounds of a way at a number of steps."""

    way: str
    steps: int
    first: float
    """Seconds to the end of the first step."""
    caching: float
    step: float
    rate: float
    """Pairs a second in the steps after the warm-up."""
    total: float
    last: float
    """Seconds from the last step to the end: export and, of ours, a checkpoint."""
    memory: float
    losses: tuple[float, float]
    """Means of the first and of the second half of the steps."""


def flags_of(way: str, options: argparse.Namespace, steps: int, folder: Path) -> list[str]:
    """The flags of both, and those of one that have no counterpart."""
    flags = {
        "pretrained_model_name_or_path": options.model,
        "dataset_name": options.data,
        "original_image_column": "original_image",
        "edited_image_column": "edited_image",
        "edit_prompt_column": "edit_prompt",
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
    return [*(word for name, value in flags.items() for word in (f"--{name}", value)), "--random_flip", "--use_ema"]


def train(way: str, options: argparse.Namespace, steps: int, folder: Path) -> Run:
    """Trains in a fresh folder."""
    log, note = folder.parent / "log", folder.parent / "memory"
    program = options.script if way == "script" else "ip2p.training"
    start = [program] if way == "script" else ["-m", program]
    start = ["-m", "tests.benchmarks.watched", str(note), program] if options.gpu else start
    environment = os.environ | {"TQDM_DISABLE": "1", **({} if options.gpu else {"ACCELERATE_USE_CPU": "1"})}
    began = time.time()
    with log.open("w") as file:
        command = [sys.executable, *start, *flags_of(way, options, steps, folder)]
        child = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
    total = time.time() - began
    if status:
        raise SystemExit(f"{way}: {log.read_text()[-3000:]}")
    memory = int(note.read_text()) if options.gpu else usage.ru_maxrss * 1024
    (logs,) = (folder / "logs").glob("instruct-pix2pix*")  # the XL script's ends in -xl
    losses, times = read_log(logs)
    finished = folder / FINISHED
    caching = json.loads(finished.read_text())["summary"]["seconds_caching"] if finished.exists() else 0.0
    return Run(total, memory, caching, losses, [at - began for at in times])


def as_training_split(data: Path, folder: Path) -> str:
    """The pairs under names that make them a training split, whatever split they are of."""
    files = sorted(data.rglob("*.parquet"))
    for number, path in enumerate(files):
        shutil.copyfile(path, folder / f"train-{number:05d}-of-{len(files):05d}.parquet")
    return str(folder)


def read_log(folder: Path) -> tuple[list[float], list[float]]:
    """The losses of all steps, and when they had ended."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    noted = events.Scalars("train_loss")
    return [each.value for each in noted], [each.wall_time for each in noted]


def row_of(way: str, steps: int, runs: Sequence[Run], batch_size: int) -> Row:
    """The medians of some rounds."""
    step = statistics.median(seconds for run in runs for seconds in run.steps)
    losses, half = runs[0].losses, len(runs[0].losses) // 2
    return Row(
        way=way,
        steps=steps,
        first=statistics.median(run.times[0] for run in runs),
        caching=statistics.median(run.caching for run in runs),
        step=step,
        rate=batch_size / step,
        total=statistics.median(run.total for run in runs),
        last=statistics.median(run.total - run.times[-1] for run in runs),
        memory=max(run.memory for run in runs),
        losses=(statistics.mean(losses[:half]), statistics.mean(losses[half:])),
    )


def compare(options: argparse.Namespace) -> list[Row]:
    """Trains in turns; the script's row comes before ours at each number of steps."""
    found: dict[tuple[int, str], list[Run]] = {key: [] for key in product(options.steps, WAYS)}
    for _ in range(options.rounds):
        for steps, way in found:
            with tempfile.TemporaryDirectory() as name:
                found[steps, way].append(train(way, options, steps, Path(name) / "out"))
    return [row_of(way, steps, runs, options.batch_size) for (steps, way), runs in found.items()]


def tell(rows: Sequence[Row]) -> None:
    """Prints the table, then a line of ratios for each number of steps."""
    print("| steps | way | to the first step, s | of it the cache, s | a step, s | pairs a second | ", end="")
    print("after the last step, s | start to end, s | peak memory, MiB | mean loss, first and second half |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        times = f"{row.first:.1f} | {row.caching:.1f} | {row.step:.3f} | {row.rate:.2f} | {row.last:.1f}"
        losses = ", ".join(f"{loss:.4f}" for loss in row.losses)
        print(f"| {row.steps} | {row.way} | {times} | {row.total:.1f} | {row.memory / 2**20:.0f} | {losses} |")
    print()
    for script, ours in zip(rows[::2], rows[1::2], strict=True):
        ratios = f"pairs a second {ours.rate / script.rate:.2f}, start to end {script.total / ours.total:.2f} times"
        print(f"{ours.steps} steps: {ratios} as fast, peak memory {ours.memory / script.memory:.2f} times")


def parser() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shipped = data_folder()
    parser.add_argument("--script", required=True, help="diffusers' train_instruct_pix2pix.py or its XL sister")
    parser.add_argument("--model", default=str(shipped / "shapes/stable-diffusion"))
    parser.add_argument("--data", default=str(shipped / "sample"), help="folder of parquet files")
    parser.add_argument("--pairs", type=int, default=0, help="draw so many of the asked resolution in place of --data")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--steps", type=int, nargs="+", default=[65], help="of each training; several, as many rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    return parser


def main() -> None:
    """Prints the table."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.pairs:
            write_drawn_pairs(Path(name) / "drawn", options.pairs, options.resolution)
            options.data = str(Path(name) / "drawn")
        split = Path(name) / "split"
        split.mkdir()
        options.data = as_training_split(Path(options.data), split)
        rows = compare(options)
    tell(rows)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
