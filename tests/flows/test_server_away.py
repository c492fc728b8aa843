"""A Prefect server that goes away in the middle of a run and comes back loses no run, whoever started it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.server import free_port
from ip2p.config import PipelineConfig
from ip2p.store import RunFolder
from tests import processes
from tests.flows.test_soak import words_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user's environment, with a database of its own that several servers follow each other on."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    home = tmp_path_factory.mktemp("prefect")
    return plain | {"PREFECT_HOME": str(home), "OMP_NUM_THREADS": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def with_shards(config: PipelineConfig) -> PipelineConfig:
    """The run in eight shards."""
    return dataclasses.replace(config, prompts=dataclasses.replace(config.prompts, shard_size=2))


def num_rendered(config: PipelineConfig) -> int:
    return len(RunFolder(config.out).shards("candidates"))


def is_made(config: PipelineConfig) -> bool:
    """Whether the dataset and its report are there."""
    folder = RunFolder(config.out)
    return bool(list((folder.dataset / "data").glob("*.parquet"))) and (folder.report / "index.html").exists()


@contextmanager
def server_at(port: int, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server of the user's, which answers."""
    with (Path(environment["PREFECT_HOME"]) / "users.log").open("ab") as log:
        command = [sys.executable, "-m", "flows.server", str(port)]
        server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
    try:
        processes.wait_until(lambda: answers(port))
        yield server
    finally:
        server.kill()
        server.wait()


def answers(port: int) -> bool:
    try:
        return bool(ask(port, "health"))
    except OSError:
        return False


def ask(port: int, path: str, body: dict[str, Any] | None = None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/{path}", content, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_users_server_that_hangs_and_is_killed_is_waited_for_at_the_end(
    ready_config: PipelineConfig, environment: dict[str, str]
) -> None:
    config, port = with_shards(ready_config), free_port(20_000 + os.getpid() % 10_000)
    log = config.out.with_suffix(".log")
    url = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    with server_at(port, environment) as server:
        child = processes.fork(processes.command, words_for(config), log, environment | url)
        processes.wait_until(lambda: num_rendered(config) >= 1, child)
        server.send_signal(signal.SIGSTOP)
        processes.wait_until(lambda: num_rendered(config) >= 3, child)
        server.send_signal(signal.SIGCONT)
        processes.wait_until(lambda: num_rendered(config) >= 4, child)
    processes.wait_until(lambda: is_made(config), child)  # without a server
    with server_at(port, environment):
        child.join()
        assert child.exitcode == 0, log.read_text()[-6000:]
        (run,) = ask(port, "flow_runs/filter", {})
    assert run["state"]["type"] == "COMPLETED"
    assert num_rendered(config) == 8


def test_the_commands_own_server_is_started_again_if_it_is_killed(
    ready_config: PipelineConfig, environment: dict[str, str]
) -> None:
    config = with_shards(ready_config)
    log = config.out.with_suffix(".log")
    child = processes.fork(processes.command, words_for(config), log, environment)
    processes.wait_until(lambda: num_rendered(config) >= 1, child)
    (server,) = (each for each in psutil.Process(child.pid).children() if "flows.server" in each.cmdline())
    server.kill()
    child.join()
    said = log.read_text()
    assert child.exitcode == 0, said[-6000:]
    assert "the Prefect server ended with exit code -9 and is started again" in said
    assert num_rendered(config) == 8 and is_made(config)
    assert not server.is_running()
