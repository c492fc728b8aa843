"""Starts a training: `accelerate launch` as a child process, with arguments that fit the machine.

The child's lines join this process's log; its end becomes a value or an error here. The child watches its standard
input, which ends with this process, so that no child is left behind.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ip2p.config import PipelineConfig, TrainingConfig, to_dict
from ip2p.store import RunFolder, State, read_json, read_json_or_empty, summarised, write_json
from ip2p.training.fingerprints import resume_fingerprint, training_fingerprint
from ip2p.training.flags import job_of
from ip2p.training.joining import check_sources

logger = logging.getLogger(__name__)

FINISHED = "finished.json"
STOP_AT_END_OF_INPUT = "IP2P_STOP_AT_END_OF_INPUT"
SHOWN_LINES = 25
LAUNCH_CONFIGS = Path(__file__).with_name("launch_configs")
"""The shipped configs of `accelerate launch`."""


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
    training = _with_resolved_data(config.training)
    check_sources(data, training)  # a missing column stops it at once, not after the child's start
    job = job_of(training, _resolved(data), output=folder.training.resolve(), export=folder.model.resolve())
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
    finished: dict[str, Any] = read_json(marker)
    expected = training_fingerprint(_with_resolved_data(config.training), _resolved(data), folder.training)
    return finished["summary"] if finished["fingerprint"] == expected else None


def training_state(config: PipelineConfig, data: str) -> State:
    """Returns the state of the training on `data`: unfinished if a checkpoint of these settings is there."""
    folder = RunFolder(config.out).training
    checkpoints = list(folder.glob("checkpoint-*/state.json"))
    if not checkpoints and not (folder / FINISHED).exists():
        return "missing"
    try:
        if finished_training(config, data) is not None:
            return "done"
        expected = resume_fingerprint(_with_resolved_data(config.training), _resolved(data), folder)
    except ValueError:  # the data are gone
        return "outdated"
    fingerprints = [read_json_or_empty(path).get("fingerprint") for path in checkpoints]
    return "unfinished" if expected in fingerprints else "outdated"


def _resolved(data: str) -> str:
    path = Path(data).expanduser()
    return str(path.resolve()) if path.exists() else data


def _with_resolved_data(training: TrainingConfig) -> TrainingConfig:
    return replace(training, more_data=tuple(_resolved(each) for each in training.more_data))


def launch_command(settings: Path, launch_args: Sequence[str] = ()) -> list[str]:
    """Builds the command line; `launch_args` replace the launcher's arguments for this machine."""
    fixed = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *(launch_args or [*_machine(), *fixed])]
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
    """Returns the launcher's arguments for one process per visible GPU, or one on the CPU."""
    import torch

    gpus = torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // max(gpus, 1)))
    processes = ["--num_processes", str(max(gpus, 1)), "--num_cpu_threads_per_process", threads]
    if gpus > 1:
        return ["--multi_gpu", *processes]
    return processes if gpus else ["--cpu", *processes]


def _environment() -> dict[str, str]:
    """Extends this process's environment, so that the child finds the same packages from any folder."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    added = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUNBUFFERED": "1", STOP_AT_END_OF_INPUT: "1"}
    return os.environ | added


def run_child(command: list[str]) -> None:
    """Runs a child; its progress bar goes straight to a terminal, its lines to the log. Raises if it fails."""
    pipe, errors = subprocess.PIPE, None if sys.stderr.isatty() else subprocess.STDOUT
    last: deque[str] = deque(maxlen=SHOWN_LINES)
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=errors, env=_environment(), text=True, errors="replace"
    ) as child:
        try:
            for line in map(str.rstrip, child.stdout or ()):
                if line:
                    last.append(line)
                    logger.info("%s", line)
            code = child.wait()
        except BaseException:
            if child.stdin is not None:
                child.stdin.close()  # the child saves a checkpoint and ends
            child.wait()
            raise
    mistakes = [line.removeprefix("error: ") for line in last if line.startswith("error: ")]
    if code and mistakes:
        raise ValueError(mistakes[-1])
    if code:
        raise RuntimeError(f"the training ended with exit code {code}. Its last lines:\n" + "\n".join(last))
