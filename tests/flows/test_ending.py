"""A run that is told to end does so at once and tells Prefect."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable

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
