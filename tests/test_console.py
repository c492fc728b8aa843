"""What goes to the terminal and what to the log file."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ip2p.console import end_on_signals, heed_signals_during, log_failure, log_to_file, start_logging
from tests import processes


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers = []
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = handlers, level


def test_a_failure_has_its_traceback_in_the_log_file_and_not_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging()
    log_to_file(tmp_path / "run.log")
    try:
        raise KeyError("lost")
    except KeyError as error:
        assert log_failure(error) == tmp_path / "run.log"
    assert "KeyError: 'lost'" in (tmp_path / "run.log").read_text()
    assert capsys.readouterr().err == ""


def test_a_log_line_names_the_stage_and_prefects_tracebacks_stay_off_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    start_logging()
    logging.getLogger("ip2p.rendering.shards").info("12 candidates")
    logging.getLogger("prefect.task_runs").error("Task run failed")
    logging.getLogger("elsewhere").warning("beware")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == ["rendering  12 candidates", "elsewhere  warning: beware"]


def test_logging_that_is_started_twice_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging()
    start_logging()
    logging.getLogger("ip2p.rendering").info("once")
    assert capsys.readouterr().err.count("once") == 1


def wait_for_a_signal_to(words: list[str]) -> int:
    """Ends by a signal that the kernel hands to a thread that only works, or whose handling fails."""
    end_on_signals()

    def work() -> None:
        if words == ["failing"]:
            psutil.wait_procs = None
        threading.Event().wait(0.3)  # until the main thread waits too; if it does not yet, this shows less
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        threading.Event().wait()

    heed_signals_during(work)
    return 0


@pytest.mark.parametrize("way", ["working", "failing"])
def test_a_signal_ends_the_command_whichever_thread_gets_it(tmp_path: Path, way: str) -> None:
    child = processes.fork(wait_for_a_signal_to, [way], tmp_path / "log")
    child.join()
    assert child.exitcode == 128 + signal.SIGTERM
    assert "interrupted" in (tmp_path / "log").read_text()


def test_work_beside_signals_returns_its_result_or_raises_its_error() -> None:
    assert heed_signals_during(lambda: 3) == 3
    with pytest.raises(KeyError, match="lost"):
        heed_signals_during(lambda: dict[str, int]()["lost"])
