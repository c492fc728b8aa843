"""Where the shards run: threads of this process, one spawned process per GPU, or a Ray cluster."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Flow
from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from ip2p.config import PipelineConfig, RunnerConfig
from ip2p.console import start_logging
from ip2p.store.mirror import Mirror, mirror_of
from ip2p.uses import USES

RAY_RETRIES = 5
"""Times Ray retries a shard whose worker or node was lost; Prefect retries a shard that fails."""


P = ParamSpec("P")
R = TypeVar("R")


def make_task_runner(config: RunnerConfig) -> TaskRunner[Any]:
    """Makes the task runner of that name. ValueError if it is not installed."""
    if config.kind == "threads":
        return ThreadPoolTaskRunner(max_workers=config.max_workers)
    if config.kind == "processes":
        claims = tempfile.mkdtemp(prefix="ip2p-workers-")
        atexit.register(shutil.rmtree, claims, ignore_errors=True)
        initargs = (claims, _places(config.max_workers))
        return ProcessPoolTaskRunner(max_workers=config.max_workers, initializer=start_worker, initargs=initargs)
    return _make_ray_runner(config)


def one_thread() -> TaskRunner[Any]:
    """Makes the task runner of a flow that is run without a config."""
    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1)
    return runner


def with_runner(flow: Flow[P, R], config: RunnerConfig) -> Flow[P, R]:
    """Returns the flow, which then runs the way the config says."""
    return flow.with_options(task_runner=make_task_runner(config))


def flow_of(use: str, config: RunnerConfig) -> Flow[..., Any]:
    """Imports the flow of a use; it runs the way the config says."""
    module, _, name = USES[use].flow.partition(":")
    return with_runner(getattr(import_module(module), name), config)


def resources(config: RunnerConfig) -> AbstractContextManager[Any]:
    """Surrounds the submission of shards: states what each asks of a Ray cluster, and how often Ray retries it."""
    if config.kind != "ray":
        return nullcontext()
    from prefect_ray.context import remote_options

    gpus = config.num_gpus if config.num_gpus is not None else float(bool(_gpus()))
    return remote_options(num_gpus=gpus, max_retries=RAY_RETRIES)  # type: ignore[no-any-return]


def store_of(config: PipelineConfig) -> Mirror | None:
    """Returns the object store that the workers use in place of the run folder; None if they see the folder itself."""
    return mirror_of(config.out) if config.runner.kind == "ray" and config.runner.address else None


def as_workers_see(config: PipelineConfig) -> PipelineConfig:
    """Returns the config that shards are handed out with: its folder is the store, which then has what they read."""
    if (store := store_of(config)) is None:
        return config
    store.push()
    return replace(config, out=Path(store.url))


def start_worker(claims: str, places: Sequence[dict[str, str]]) -> None:
    """Gives a worker process its device, its log on the terminal, and an end when its parent ends."""
    os.environ.update(_claim_place(Path(claims), places))
    start_logging()
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _claim_place(claims: Path, places: Sequence[dict[str, str]]) -> dict[str, str]:
    """Takes the first place that no other worker has a file for; the runner is pickled, which no queue survives."""
    for number, place in enumerate(places):
        try:
            (claims / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        return place
    raise RuntimeError(f"all {len(places)} places for workers are taken. Start the run again.")


def raise_first_failure(
    futures: Iterable[PrefectFuture[Any]], ended: Callable[[PrefectFuture[Any]], object] = lambda future: None
) -> None:
    """Waits for all shards, so that none in flight is lost, reports the end of each, and raises the first failure."""
    states = []
    for future in futures:
        future.wait()
        states.append(future.state)
        ended(future)
    for state in states:
        if state.is_failed() or state.is_crashed():
            state.result()


def _places(num_workers: int) -> list[dict[str, str]]:
    """Lists the environment variables of each worker: its GPU, or its share of the cores."""
    gpus = _gpus()
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(num_workers)]
    return [{"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_workers))}] * num_workers


def _gpus() -> Sequence[str]:
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_any([parent.sentinel])
        os._exit(1)


def _make_ray_runner(config: RunnerConfig) -> TaskRunner[Any]:
    try:
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise ValueError("runner.kind ray needs prefect-ray. Install it with: pip install 'ip2p[ray]'") from error
    options = {} if config.address else {"num_cpus": config.max_workers}
    runner: TaskRunner[Any] = RayTaskRunner(address=config.address, init_kwargs=options)
    return runner
