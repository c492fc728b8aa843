"""What many workers ask of one Prefect server: `python -m tests.benchmarks.workers --workers 1 8 64`.

Runs a flow of shards that do nothing but log a line, on a private server as a run has, with the run's own task runner
of spawned processes. Prints, by number of workers, the core's time that the server takes for a shard and the most
memory that it holds. Shards of a real run take a minute or so: what one takes of the server tells how many workers one
core of it carries. Workers' start is told apart, as each imports Prefect.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

import psutil
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.runners import make_task_runner, raise_first_failure
from flows.server import prefect_server
from ip2p.config import RunnerConfig

logger = logging.getLogger("ip2p.benchmark")


@dataclass(frozen=True)
class Load:
    """What a flow asked of its server."""

    workers: int
    shards: int
    start: float
    """Seconds until every worker had ended its first shard."""
    seconds: float
    """Seconds of the others."""
    server: float
    """Seconds of a core that the server took for them."""
    memory: int
    """Resident bytes of the server at the end."""


@task(task_run_name="shard-{number:05d}", cache_policy=NO_CACHE)
def do_nothing(number: int, pause: float) -> int:
    """Logs a line, as a shard does at its end."""
    logger.info("shard %d", number)
    time.sleep(pause)
    return os.getpid()


@flow(name="workers")
def all_shards(workers: int, shards: int, server_pid: int) -> Load:
    """Hands out shards twice: a few that all workers start for, then the others."""
    server = psutil.Process(server_pid)
    began = time.monotonic()
    while True:
        futures = [do_nothing.submit(number, 1.0) for number in range(workers)]
        raise_first_failure(futures)
        if len({future.result() for future in futures}) == workers:
            break
    started, before = time.monotonic(), _core_seconds(server)
    raise_first_failure([do_nothing.submit(number, 0.0) for number in range(shards)])
    seconds = time.monotonic() - started
    time.sleep(10)  # in which what waits in clients and server is written
    taken = _core_seconds(server) - before
    return Load(workers, shards, started - began, seconds, taken, server.memory_info().rss)


def _core_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(workers: int, shards: int) -> Load:
    """Runs the flow on a server of its own, in a child: Prefect reads the server's address when it is imported."""
    os.environ.pop("PREFECT_API_URL", None)
    with tempfile.TemporaryDirectory() as home:
        os.environ["PREFECT_HOME"] = home
        with prefect_server():
            (server,) = (each for each in psutil.Process().children() if "flows.server" in each.cmdline())
            sizes = [str(number) for number in (workers, shards, server.pid)]
            command = [sys.executable, "-m", "tests.benchmarks.workers", "--of-server", *sizes]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Load(**json.loads(child.stdout.splitlines()[-1]))


def run_flow(workers: int, shards: int, server_pid: int) -> None:
    """Runs the flow in this process and prints what it asked of its server."""
    runner = make_task_runner(RunnerConfig(kind="processes", max_workers=workers))
    load: Load = all_shards.with_options(task_runner=runner)(workers, shards, server_pid)
    print(json.dumps(asdict(load)))


def tell(load: Load) -> None:
    """Prints a row."""
    a_shard = load.server / load.shards
    print(
        f"| {load.workers} | {load.shards} | {load.start:.0f} | {load.seconds:.1f} | {1000 * a_shard:.1f} | "
        f"{load.memory / 2**20:.0f} |",
        flush=True,
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--shards", type=int, default=640)
    parser.add_argument("--of-server", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("prefect").setLevel(logging.WARNING)
    if options.of_server:
        run_flow(*options.of_server)
        return
    print("| workers | shards | to start, s | shards, s | of the server's core a shard, ms | its memory, MiB |")
    print("|---|---|---|---|---|---|")
    for workers in options.workers:
        tell(measure(workers, options.shards))


if __name__ == "__main__":
    main()
