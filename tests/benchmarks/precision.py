"""How much faster the default renders and trains in bfloat16 than in float32: `python tests/benchmarks/precision.py`.

The same candidates and the same training steps in both, in turns. Where the machine does not multiply bfloat16 itself,
`auto` takes float32, and the ratios say why.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from ip2p.models.loading import keep_freed_memory, resolve_dtype
from ip2p.models.pipelines import load_text_to_image
from ip2p.presets import data_folder, shapes
from ip2p.rendering import draw_candidates, render_pairs
from ip2p.shapes.domain import ShapesDomain
from ip2p.training.data import open_rows
from ip2p.training.filling import load_cache
from ip2p.training.flags import job_of
from ip2p.training.run import new_accelerator, new_trainer

ROUNDS, PAIRS, STEPS = 3, 64, 30
PRECISIONS = {"float32": "no", "bfloat16": "bf16"}


def rendering_seconds(dtype: str) -> float:
    """Seconds to render the first candidate of some edits of drawn scenes."""
    config = replace(shapes().rendering, dtype=dtype)  # type: ignore[arg-type]
    pipeline = load_text_to_image(config.model, revision=None, variant=None, dtype=dtype, device="cpu")
    candidates = [draw_candidates(config, case.triplet)[0] for case in ShapesDomain().draw_cases(PAIRS, seed=0)]
    started = time.perf_counter()
    list(render_pairs(pipeline, candidates, config))
    return time.perf_counter() - started


def training_seconds(mixed_precision: str) -> float:
    """Median seconds of the default's training step, in a process of its own: accelerate takes one precision each."""
    config = replace(shapes().training, mixed_precision=mixed_precision)  # type: ignore[arg-type]
    (file,) = (data_folder() / "sample").glob("*.parquet")
    with tempfile.TemporaryDirectory() as name:
        job = job_of(config, str(file), output=Path(name), export=Path(name))
        accelerator = new_accelerator(job)
        trainer, _ = new_trainer(load_cache(Path(name), open_rows(str(file), job), job, accelerator), job, accelerator)
    seconds = []
    for step in range(STEPS):
        started = time.perf_counter()
        trainer.step(step)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[5:])


def main() -> None:
    """Prints medians and their ratios."""
    keep_freed_memory()
    if len(sys.argv) > 1:
        print(json.dumps(training_seconds(sys.argv[1])))
        return
    print(f"auto is {resolve_dtype('auto', 'cpu')} on this machine")
    rendering: dict[str, list[float]] = {dtype: [] for dtype in PRECISIONS}
    training: dict[str, list[float]] = {dtype: [] for dtype in PRECISIONS}
    for number in range(ROUNDS + 1):
        for dtype, mode in PRECISIONS.items():
            seconds = rendering_seconds(dtype) / PAIRS
            command = [sys.executable, __file__, mode]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
            if number:  # the first round warms up
                rendering[dtype].append(seconds)
                training[dtype].append(json.loads(told))
    _tell("rendering, a pair", rendering)
    _tell("training, a step", training)


def _tell(what: str, found: dict[str, list[float]]) -> None:
    medians = {dtype: statistics.median(seconds) for dtype, seconds in found.items()}
    told = ", ".join(f"{dtype} {seconds:.4f} s" for dtype, seconds in medians.items())
    print(f"{what}: {told}; ratio {medians['float32'] / medians['bfloat16']:.2f}")


if __name__ == "__main__":
    main()
