"""A run that is told to end does so at once, at any stage, keeps what is whole, and is gone on with."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort

from ip2p.config import PipelineConfig
from ip2p.store import RunFolder
from tests import processes
from tests.flows.test_soak import environment, words_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows")]

LONG = 900
"""Denoising steps of a shard that takes many minutes."""
INTERRUPTED = 128 + signal.SIGTERM


def end_once(config: PipelineConfig, condition: Callable[[], object], use: str = "dataset") -> str:
    """Starts the command, sends SIGTERM to it alone as soon as the condition holds, and returns what it said."""
    log = config.out.with_suffix(".log")
    start = log.stat().st_size if log.exists() else 0
    words = [use, *words_for(config)[1:]]
    child = processes.fork(processes.command, words, log, environment())
    processes.wait_until(condition, child)
    os.kill(child.pid or 0, signal.SIGTERM)
    child.join()
    said = log.read_text()[start:]
    assert child.exitcode == INTERRUPTED, said[-6000:]
    assert "interrupted. Run the same command again to resume." in said
    return said


def says(config: PipelineConfig, words: str) -> Callable[[], bool]:
    """Whether a run's log has the words."""
    path = config.out / "run.log"
    return lambda: path.exists() and words in path.read_text()


def test_a_shard_that_would_take_hours_is_not_waited_for(ready_config: PipelineConfig) -> None:
    config = dataclasses.replace(
        ready_config, rendering=dataclasses.replace(ready_config.rendering, num_inference_steps=LONG)
    )
    said = end_once(config, says(config, "loaded ('text-to-image'"))
    assert "Traceback" not in said
    assert RunFolder(config.out).shards("triplets") and not RunFolder(config.out).shards("candidates")
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=20)
    (run,) = (each for each in runs if each.parameters.get("config", {}).get("out") == str(config.out))
    assert run.state_name == "Crashed"


def test_every_stage_ends_when_told_to_and_the_run_goes_on_from_there(ready_config: PipelineConfig) -> None:
    training = dataclasses.replace(ready_config.training, max_train_steps=40, checkpointing_steps=40)
    config, folder = dataclasses.replace(ready_config, training=training), RunFolder(ready_config.out)

    def any_file(pattern: str) -> Callable[[], bool]:
        return lambda: any(folder.root.glob(pattern))

    stages = {
        "prompts": any_file("triplets/part-*.parquet"),
        "rendering": any_file("candidates/part-*.parquet"),
        "dataset": any_file("*dataset*"),
        "training": any_file("training/loss.jsonl"),
        "evaluation": any_file("evaluation/parts/*.parquet"),
    }
    whole: dict[Path, bytes] = {}
    for stage, is_there in stages.items():
        end_once(config, is_there, "run")
        assert all(path.read_bytes() == content for path, content in whole.items()), f"{stage}: shards were made again"
        kept = [path for name in ("triplets", "candidates", "pairs") for path in folder.shards(name)]
        whole = {path: path.read_bytes() for path in kept}
    assert len(list(folder.training.glob("checkpoint-*/state.json"))) > 1  # at the signal and at the end
    processes.run(processes.command, ["run", *words_for(config)[1:]], config.out.with_suffix(".log"), environment())
    assert all(path.read_bytes() == content for path, content in whole.items())
    assert (folder.report / "index.html").exists() and (folder.model / "model_index.json").exists()
