"""How a training is started: `accelerate launch` as a child process, with arguments that fit the machine.

The child's log goes on in this process's log; its end, good or bad, becomes a value or an error here. The child watches
its standard input, which ends with this process, so that none is left behind.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ip2p.config import PipelineConfig, to_dict
from ip2p.store import RunFolder, read_json, summarised, write_json
from ip2p.training.data import find_files, open_rows, training_fingerprint
from ip2p.training.flags import job_of

logger = logging.getLogger(__name__)

FINISHED = "finished.json"
STOP_AT_END_OF_INPUT = "IP2P_STOP_AT_END_OF_INPUT"
SHOWN_LINES = 25
LAUNCH_CONFIGS = Path(__file__).with_name("launch_configs")
"""Of `accelerate launch`, by name."""


@summarised("training")
def launch(config: PipelineConfig, data: str) -> dict[str, Any]:
    """Trains on `data` into the run folder and returns the figures; a finished training is not repeated.

    ValueError for what the user can fix, RuntimeError with the child's last lines for anything else.
    """
    folder = RunFolder(config.out)
    done = finished_training(config, data)
    if done is not None:
        logger.info("the training is finished already: %s", folder.model)
        return done
    if find_files(data):
        open_rows(data, config.training)  # a missing column stops it at once, not after the child's start
    path = Path(data).expanduser()
    source = str(path.resolve()) if path.exists() else data
    job = job_of(config.training, source, output=folder.training.resolve(), export=folder.model.resolve())
    settings = folder.training / "config.json"
    write_json(settings, to_dict(job))
    command = launch_command(settings, with_shipped_configs(shlex.split(config.training.launch_args)))
    logger.info("starting %s", " ".join(command))
    run_child(command)
    summary = finished_training(config, data)
    if summary is None:
        raise RuntimeError(f"the training ended without {folder.training / FINISHED}. Look at the log above.")
    return summary


def finished_training(config: PipelineConfig, data: str) -> dict[str, Any] | None:
    """Returns the figures of a training that ran to its end under this config on this data, or None."""
    folder = RunFolder(config.out)
    marker = folder.training / FINISHED
    if not marker.exists() or not (folder.model / "model_index.json").exists():
        return None
    found = read_json(marker)
    if found["fingerprint"] != training_fingerprint(config.training, data):
        return None
    summary: dict[str, Any] = found["summary"]
    return summary


def launch_command(settings: Path, launch_args: Sequence[str] = ()) -> list[str]:
    """Builds the command line: as `launch_args` say, or one process per visible GPU, or one on the CPU."""
    fixed = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    how = list(launch_args) or [*_machine(), *fixed]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *how]
    return [*launcher, "--module", "ip2p.training", "--config", str(settings.resolve())]


def with_shipped_configs(launch_args: Sequence[str]) -> list[str]:
    """Replaces `--config_file fsdp` and its like by the paths of the configs that come with the package."""
    words = list(launch_args)
    for number, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag not in ("--config_file", "--config-file"):
            continue
        place = number if equals else number + 1
        if place < len(words):
            words[place] = f"{flag}=" * bool(equals) + _shipped(value if equals else words[place])
    return words


def _shipped(name: str) -> str:
    """Returns the path of a shipped config. ValueError for a bare name that none has."""
    if Path(name).exists() or Path(name).name != name or Path(name).suffix not in ("", ".yaml"):
        return name
    path = LAUNCH_CONFIGS / f"{name.removesuffix('.yaml')}.yaml"
    if not path.exists():
        names = ", ".join(sorted(path.stem for path in LAUNCH_CONFIGS.glob("*.yaml")))
        raise ValueError(f"there is no file {name}, nor a launch config of that name. Give a path, or one of {names}.")
    return str(path)


def _machine() -> list[str]:
    import torch

    gpus = torch.cuda.device_count()
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _num_cores() // max(gpus, 1)))
    processes = ["--num_processes", str(max(gpus, 1)), "--num_cpu_threads_per_process", threads]
    if gpus > 1:
        return ["--multi_gpu", *processes]
    return processes if gpus else ["--cpu", *processes]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _environment() -> dict[str, str]:
    """Extends this process's environment, so that the child finds the same packages from any folder."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    added = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUNBUFFERED": "1", STOP_AT_END_OF_INPUT: "1"}
    return os.environ | added


def run_child(command: list[str]) -> None:
    """Runs a child; its progress bar goes straight to a terminal, its lines to the log. Raises if it fails."""
    pipe, errors = subprocess.PIPE, None if sys.stderr.isatty() else subprocess.STDOUT
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=errors, env=_environment(), text=True, errors="replace"
    ) as child:
        try:
            last = _follow(child.stdout or ())
            code = child.wait()
        except BaseException:
            if child.stdin is not None:
                child.stdin.close()  # the child saves a checkpoint and ends
            child.wait()
            raise
    if code:
        _raise_for(last, code)


def _follow(lines: Iterable[str]) -> list[str]:
    last: deque[str] = deque(maxlen=SHOWN_LINES)
    for line in lines:
        if line.strip():
            last.append(line.rstrip())
            logger.info("%s", line.rstrip())
    return list(last)


def _raise_for(last: list[str], code: int) -> None:
    mistakes = [line.removeprefix("error: ") for line in last if line.startswith("error: ")]
    if mistakes:
        raise ValueError(mistakes[-1])
    raise RuntimeError(f"the training ended with exit code {code}. Its last lines:\n" + "\n".join(last))
