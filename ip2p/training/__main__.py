"""`accelerate launch -m ip2p.training --config FILE --data DIR_OR_HUB_ID --output DIR --export DIR`.

A user's mistake ends as one line `error: …` and exit code 2; a wish to stop as a checkpoint and exit code 130.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import Accelerator, InitProcessGroupKwargs

from ip2p.config import PipelineConfig, TrainingConfig
from ip2p.loading import keep_freed_memory, resolve_device, resolve_dtype
from ip2p.store import write_json
from ip2p.training import components
from ip2p.training.cache import load_cache
from ip2p.training.checkpoint import Progress
from ip2p.training.export import write_editor
from ip2p.training.launching import FINISHED, STOP_AT_END_OF_INPUT
from ip2p.training.loop import Interrupted, Stop, Trainer, new_trained, train
from ip2p.training.losslog import mean_of_last, read_losses
from ip2p.training.objective import objective_of
from ip2p.training.source import Rows, open_rows, resume_fingerprint, training_fingerprint
from ip2p.training.surgery import widen_conv_in

logger = logging.getLogger("ip2p.training")


def main(arguments: list[str] | None = None) -> int:
    """Runs one training; returns the exit code."""
    options = parse(arguments)
    keep_freed_memory()
    is_main = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s", force=True)
    logging.getLogger("ip2p").setLevel(logging.INFO if is_main else logging.WARNING)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    stop = Stop().on_signals()
    if os.environ.get(STOP_AT_END_OF_INPUT):
        stop.on_end_of_input()
    try:
        with _locked(options.output, is_main):
            run(read_config(options.config), options.data, options.output, options.export, stop)
    except ValueError as error:
        print(f"error: {error}", flush=True)
        return 2
    except Interrupted as error:
        print(error, flush=True)
        return 130
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The four paths of a training."""
    parser = argparse.ArgumentParser(prog="python -m ip2p.training", description="Trains an editor on pairs.")
    parser.add_argument("--config", type=Path, required=True, help="JSON of a whole config or its training section")
    parser.add_argument("--data", required=True, help="folder of parquet files, a run folder or a hub id")
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoints and loss.jsonl")
    parser.add_argument("--export", type=Path, required=True, help="folder of the trained pipeline")
    return parser.parse_args(arguments)


def read_config(path: Path) -> TrainingConfig:
    """The training section of a saved config."""
    try:
        values = json.loads(path.read_text())
        return TrainingConfig(**values.get("training", values))
    except (OSError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no config of a training: {error}") from error


def run(config: TrainingConfig, data: str, output: Path, export: Path, stop: Stop) -> dict[str, Any]:
    """Caches, trains, exports; returns what happened, which also lies in `output/finished.json`."""
    rows = open_rows(data, config)
    accelerator = _accelerator(config)
    whole = PipelineConfig(training=config)
    unet = widen_conv_in(components.load_unet(config), 2 * components.latent_channels(config))
    objective = objective_of(components.load_noise_scheduler(config), config.snr_gamma).to(accelerator.device)
    cache = load_cache(output / "cache", rows, config, accelerator)
    trained, network = new_trained(unet, config, accelerator)
    trainer = Trainer(config, cache, objective, components.latent_scale(config), accelerator, network, trained)
    logger.info("training on %d pairs, %d steps on %s", len(cache), config.max_train_steps, accelerator.device)
    progress = train(trainer, output, resume_fingerprint(whole, data), stop)
    summary = _summary(progress, rows, output, cache.seconds, len(cache))
    if accelerator.is_main_process:
        write_editor(trained.average or trained.unet, config, export)
        write_json(output / FINISHED, {"fingerprint": training_fingerprint(whole, data), "summary": summary})
        logger.info("wrote %s", export)
    accelerator.end_training()
    return summary


def _accelerator(config: TrainingConfig) -> Accelerator:
    precision: str = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if resolve_dtype("auto", resolve_device("auto")) == "bfloat16" else "no"
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("mixed_precision fp16 wants a GPU, got a CPU. Set training.mixed_precision to bf16 or no.")
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))  # the cache is built inside
    return Accelerator(mixed_precision=precision, kwargs_handlers=[patient])


def _summary(progress: Progress, rows: Rows, output: Path, caching: float, samples: int) -> dict[str, Any]:
    return {
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "seconds_caching": caching,
        "loss": round(mean_of_last(read_losses(output / "loss.jsonl")), 6),
        "samples": samples,
        "dropped": len(rows) - samples,
    }


@contextmanager
def _locked(folder: Path, is_main: bool) -> Iterator[None]:
    """One training at a time in a folder; another one waits."""
    if not is_main or sys.platform == "win32":
        yield
        return
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("waiting for another training in %s to end", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
