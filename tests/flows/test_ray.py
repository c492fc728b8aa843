"""A Ray cluster of two nodes on this machine makes the dataset that one thread makes, though a node is killed."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from prefect.settings import PREFECT_API_URL

from flows.dataset import dataset_flow
from flows.runners import resources, with_runner
from ip2p.cli.arguments import NewRun
from ip2p.cli.parsing import parse_over_base
from ip2p.config import PipelineConfig, RunnerConfig
from ip2p.store import RunFolder
from tests.flows.conftest import one_thread

pytest.importorskip("prefect_ray")
pytestmark = pytest.mark.slow


def test_shards_ask_ray_for_what_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect_ray.context import RemoteOptionsContext

    def asked(config: RunnerConfig) -> dict[str, Any]:
        with resources(config):
            return dict(RemoteOptionsContext.get().current_remote_options)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert asked(RunnerConfig(kind="threads")) == {}
    assert asked(RunnerConfig(kind="ray"))["num_gpus"] == 0
    assert asked(RunnerConfig(kind="ray", num_gpus=0.5))["num_gpus"] == 0.5
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert asked(RunnerConfig(kind="ray"))["num_gpus"] == 1


def test_the_runner_has_short_flags() -> None:
    words = ["shapes", "--runner", "ray", "--ray-address=10.0.0.1:6379", "--workers", "8"]
    with ExitStack() as stack:
        _, config = parse_over_base(NewRun, words, "ip2p dataset", stack)
    assert config.runner == RunnerConfig(kind="ray", address="10.0.0.1:6379", max_workers=8)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes a cluster whose head, as `add_node` does other nodes, has one processor and more environment variables."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))  # as the command sets it for its workers
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with ExitStack() as stack:

        def make(environment: dict[str, str] | None = None) -> Any:
            head = {"num_cpus": 1, "include_dashboard": False, "env_vars": environment or {}}
            found = Cluster(initialize_head=True, head_node_args=head)
            stack.callback(found.shutdown)
            stack.callback(ray.shutdown)
            return found

        yield make


def kill_once(condition: Callable[[], bool], cluster: Any, node: Any) -> threading.Event:
    """Kills a node as soon as the condition holds; returns the event of its end."""
    killed = threading.Event()

    def watch() -> None:
        while not condition():
            killed.wait(0.05)
        cluster.remove_node(node, allow_graceful=False)
        killed.set()

    threading.Thread(target=watch, daemon=True).start()
    return killed


def test_a_killed_node_changes_nothing(ready_config: PipelineConfig, cluster: Callable[..., Any]) -> None:
    prompts = dataclasses.replace(ready_config.prompts, shard_size=2)
    alone = dataclasses.replace(ready_config, prompts=prompts)
    with one_thread():
        dataset_flow(alone)
    nodes = cluster()
    runner = RunnerConfig(kind="ray", max_workers=2, address=nodes.address, num_gpus=0)
    apart = dataclasses.replace(alone, out=alone.out.parent / "apart", runner=runner)
    node = nodes.add_node(num_cpus=1)
    killed = kill_once(lambda: len(RunFolder(apart.out).shards("candidates")) >= 2, nodes, node)
    with_runner(dataset_flow, runner)(apart)
    assert killed.is_set()
    one, two = ([path.read_bytes() for path in RunFolder(each.out).shards("pairs")] for each in (alone, apart))
    assert len(one) == 8
    assert one == two
