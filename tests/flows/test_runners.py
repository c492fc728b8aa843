"""Where shards run, and what happens to one that fails."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import tasks
from flows.dataset import dataset_flow
from flows.runners import _claim_place, make_task_runner, raise_first_failure, with_runner
from ip2p.config import PipelineConfig, RunnerConfig
from ip2p.store import RunFolder
from tests.flows.conftest import one_thread

pytestmark = pytest.mark.slow


def test_threads_are_as_many_as_the_config_says() -> None:
    assert make_task_runner(RunnerConfig(kind="threads", max_workers=3)) == ThreadPoolTaskRunner(max_workers=3)


@pytest.mark.skipif(importlib.util.find_spec("prefect_ray") is not None, reason="prefect-ray is installed")
def test_ray_without_its_package_is_one_line_with_the_command_that_installs_it() -> None:
    with pytest.raises(ValueError, match=r"pip install 'ip2p\[ray\]'"):
        make_task_runner(RunnerConfig(kind="ray"))


def test_every_worker_gets_a_place_of_its_own(tmp_path: Path) -> None:
    places = [{"CUDA_VISIBLE_DEVICES": str(number)} for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        claimed = list(pool.map(lambda _: _claim_place(tmp_path, places), range(3)))
    assert sorted(place["CUDA_VISIBLE_DEVICES"] for place in claimed) == ["0", "1", "2"]


def _tries(config: PipelineConfig, error: type[Exception]) -> int:
    calls: list[int] = []

    @task
    def fails() -> None:
        calls.append(1)
        raise error("no")

    @flow
    def once() -> None:
        retried: Callable[[], object] = tasks.retrying(fails, config).with_options(retry_delay_seconds=0)
        retried()

    with pytest.raises(error):
        once()
    return len(calls)


def test_a_users_mistake_is_not_tried_again_and_bad_luck_is(tiny_config: PipelineConfig) -> None:
    config = dataclasses.replace(tiny_config, runner=RunnerConfig(retries=2))
    assert _tries(config, ValueError) == 1
    assert _tries(config, RuntimeError) == 3


def test_one_failed_shard_ends_the_flow_after_the_others_are_through() -> None:
    through: list[int] = []

    @task
    def third_fails(number: int) -> None:
        if number == 1:
            raise ValueError(f"shard {number} is broken")
        through.append(number)

    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1)

    @flow(task_runner=runner)
    def mapped() -> None:
        raise_first_failure(third_fails.map(range(4)))

    with pytest.raises(ValueError, match="shard 1 is broken"):
        mapped()
    assert through == [0, 2, 3]


def test_a_mistake_inside_a_shard_reaches_the_caller_of_the_flow_as_it_was(ready_config: PipelineConfig) -> None:
    broken = dataclasses.replace(
        ready_config, rendering=dataclasses.replace(ready_config.rendering, scheduler="NoSuchScheduler")
    )
    with pytest.raises(ValueError, match="NoSuchScheduler"):
        dataset_flow(broken)
    assert len(RunFolder(broken.out).shards("triplets")) == 3


def test_two_spawned_processes_make_the_dataset_that_one_thread_makes(
    ready_config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with one_thread():
        dataset_flow(ready_config)
    apart = dataclasses.replace(
        ready_config, out=tmp_path / "apart", runner=RunnerConfig(kind="processes", max_workers=2)
    )
    with_runner(dataset_flow, apart.runner)(apart)
    one, two = ([path.read_bytes() for path in RunFolder(each.out).shards("pairs")] for each in (ready_config, apart))
    assert one == two
    assert os.environ["OMP_NUM_THREADS"] == "1"
