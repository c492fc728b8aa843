"""Child processes of tests: forks of one that has the libraries loaded, and waits that end when the child does.

Python with torch and diffusers takes ten seconds of a processor to start. A test that starts, kills and starts again
pays that once: its children are forked from a server that has imported the libraries and computed nothing yet. What
they do and how they end is as real as with a child that starts from nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

Main = Callable[[list[str]], int]
"""A program: words to exit code. A child imports its module before it has its environment."""
LOADED = ("ip2p.cli", "ip2p.rendering", "ip2p.training.__main__", "open_clip")
"""What a child finds imported; prefect is not among it, for it reads its settings from the environment as it loads."""
SECONDS_BETWEEN_LOOKS = 0.01


def command(words: list[str]) -> int:
    """The command `ip2p`."""
    from ip2p.cli import main

    return main(words)


def training(words: list[str]) -> int:
    """`python -m ip2p.training`."""
    from ip2p.training.__main__ import main

    return main(words)


def fork(main: Main, words: Sequence[str], log: Path, environment: Mapping[str, str] = os.environ) -> ForkServerProcess:
    """Starts a program at the head of a process group, with what it prints added to a log."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    log.touch()
    child = context.Process(target=_run, args=(main, list(words), log, dict(environment)), daemon=True)
    child.start()
    return child


def _run(main: Main, words: list[str], log: Path, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    sys.exit(main(words))


def wait_until(condition: Callable[[], object], child: ForkServerProcess | None = None) -> None:
    """Returns once the condition holds: while the child runs, and within the test's time limit."""
    never = threading.Event()
    while not condition():
        assert child is None or child.exitcode is None, f"the child ended with {child.exitcode} before that"
        never.wait(SECONDS_BETWEEN_LOOKS)


def kill(*children: ForkServerProcess) -> None:
    """Kills children with their whole process groups, in the midst of whatever they do.

    Every one is killed before any is waited for: a rank that misses another would end by itself.
    """
    pids = [child.pid for child in children if child.is_alive() and child.pid is not None]
    assert len(pids) == len(children)
    for pid in pids:
        os.killpg(pid, signal.SIGKILL)
    for child in children:
        child.join()
        assert child.exitcode == -signal.SIGKILL


def run(main: Main, words: Sequence[str], log: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Runs a program to its end, which must be a good one."""
    child = fork(main, words, log, environment)
    child.join()
    assert child.exitcode == 0, log.read_text()[-6000:]


@contextmanager
def ranks(
    main: Main, words: Sequence[str], log: Path, environment: Mapping[str, str], num: int = 2
) -> Iterator[list[ForkServerProcess]]:
    """Starts the processes of a distributed program, which find each other as those of `torchrun` do."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(num)}
    place |= {"LOCAL_WORLD_SIZE": str(num), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    numbered = [place | {"RANK": str(number), "LOCAL_RANK": str(number)} for number in range(num)]
    yield [fork(main, words, log, {**environment, **of_rank}) for of_rank in numbered]


def run_ranks(main: Main, words: Sequence[str], log: Path, environment: Mapping[str, str], num: int = 2) -> None:
    """Runs a distributed program to its end, which must be a good one in every process."""
    with ranks(main, words, log, environment, num) as children:
        for child in children:
            child.join()
    assert [child.exitcode for child in children] == [0] * num, log.read_text()[-6000:]
