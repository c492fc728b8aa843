"""Decides what users see on a terminal: compact log lines, a log file beside the run, and one line per error."""

from __future__ import annotations

import difflib
import errno
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from types import FrameType
from typing import TypeVar

import psutil

logger = logging.getLogger(__name__)

GRACE_SECONDS = 30.0
"""Time that child processes get to write a checkpoint before this process ends, and then its last acts."""
SECONDS_BETWEEN_SIGNALS = 0.5
"""How often a main thread that waits for another looks for signals."""
T = TypeVar("T")

NOISE = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine", "prefect.task_runner", "prefect.flow_engine")
"""Loggers that would repeat the command's one-line error with tracebacks; the log file has everything."""


class TerminalHandler(logging.Handler):
    """Writes to standard error, above a progress bar if one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        line = self.format(record)
        tqdm = sys.modules.get("tqdm")
        if tqdm is not None and sys.stderr.isatty():
            tqdm.tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


class LogFile(logging.FileHandler):
    """Writes to the log of a run, until the next command starts its own logging."""


class CompactFormatter(logging.Formatter):
    """Formats a record as `12:30:01 rendering  message`, with the module's name only."""

    def format(self, record: logging.LogRecord) -> str:
        """Names the module and, above INFO, the level."""
        parts = record.name.split(".")
        place = parts[1] if parts[0] == "ip2p" and len(parts) > 1 else parts[0]
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{self.formatTime(record, '%H:%M:%S')} {place:<10} {level}{record.getMessage()}"


def start_logging(debug: bool = False) -> None:
    """Sends `ip2p` at INFO and all else at WARNING to the terminal; call it before prefect is imported."""
    handler = TerminalHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s") if debug else CompactFormatter()
    )
    if not debug:
        handler.addFilter(lambda record: not record.name.startswith(NOISE))
    root = logging.getLogger()
    for old in list(root.handlers):
        if type(old).__module__.startswith(("prefect", __name__)):
            root.removeHandler(old)
            old.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("ip2p").setLevel(logging.DEBUG if debug else logging.INFO)
    if not debug:
        warnings.simplefilter("ignore", FutureWarning)  # libraries' notes to their callers, not to users
        warnings.simplefilter("ignore", DeprecationWarning)
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; those of `ip2p` decide for themselves
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def log_to_file(path: Path) -> None:
    """Adds a log file, which records errors with their tracebacks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = LogFile(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


def log_failure(error: BaseException) -> Path | None:
    """Writes a traceback to the log file and returns its path; None if there is no log file."""
    raised = (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "the command failed", (), raised)
    for handler in _log_files():
        handler.handle(record)
    return log_file()


def log_file() -> Path | None:
    """Returns the log file of this process, if there is one."""
    return next((Path(handler.baseFilename) for handler in _log_files()), None)


def _log_files() -> list[LogFile]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, LogFile)]


def end_on_signals() -> None:
    """Makes Ctrl-C and SIGTERM end this process with one line; finished shards and checkpoints are on disk already."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


_last_acts: list[Callable[[], object]] = []


@contextmanager
def last_act(act: Callable[[], object]) -> Iterator[None]:
    """Has something done if a signal ends the process while the body runs, after the child processes have ended."""
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


def heed_signals_during(work: Callable[[], T]) -> T:
    """Does the work in a thread of its own and returns its result, while this one, the main one, heeds signals.

    The kernel may hand a signal to any thread of the process, and Python handles it in the main one, which such a
    signal does not wake. So that one wakes by itself.
    """
    context = copy_context()
    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(lambda: context.run(work))
        while not wait([working], SECONDS_BETWEEN_SIGNALS).done:
            pass
        return working.result()


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    try:
        os.write(2, f"\nip2p: interrupted. {RESUME_HINT}\n".encode())
        _end_children()
        acting = [threading.Thread(target=_attempt, args=(act,), daemon=True) for act in _last_acts]
        for thread in acting:
            thread.start()
        for thread in acting:
            thread.join(GRACE_SECONDS)
    finally:  # an error here would leave the process to its work, deaf to this signal
        os._exit(128 + number)


def _attempt(act: Callable[[], object]) -> None:
    try:
        act()
    except Exception as error:
        os.write(2, f"ip2p: {one_line(error)}\n".encode())


def _end_children() -> None:
    """Terminates child processes and waits for them, so that the next command does not meet them."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        try:
            child.terminate()
        except psutil.Error:
            continue
    psutil.wait_procs(children, timeout=GRACE_SECONDS)


RESUME_HINT = "Run the same command again to resume."


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the exception's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_mistake(error: BaseException) -> bool:
    """Returns True if the user asked for something wrong, False if something broke."""
    return isinstance(error, ValueError | FileNotFoundError)


def one_line(error: BaseException) -> str:
    """Formats an error for the user: all of a mistake's message, else the exception's name and first line."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk ({error.filename or 'while writing'}). Free some. {RESUME_HINT}"
    if is_mistake(error):
        return " ".join(line.strip() for line in str(error).strip().splitlines()) or first_line(error)
    kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
    return f"{kind}{first_line(error)}"


def suggest(name: str, names: Sequence[str], where: str = "") -> str:
    """Returns `Did you mean x?`, or the valid names if none is near."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean {where}{near[0]}?" if near else f"Valid names: {', '.join(names)}."
