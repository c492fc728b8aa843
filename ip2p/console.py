"""How the software speaks on a terminal: compact log lines, a log file beside the run, and one line for every error."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType

logger = logging.getLogger(__name__)

GRACE_SECONDS = 30.0
"""How long child processes may take to write a checkpoint before this process ends."""

NOISE = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine", "prefect.task_runner", "prefect.flow_engine")
"""They repeat on the terminal, with tracebacks, what the command says in one line; the log file has it all."""


class TerminalHandler(logging.Handler):
    """Writes to standard error, above a progress bar where one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record, unless it is meant for the log file alone."""
        if getattr(record, "file_only", False):
            return
        line = self.format(record)
        tqdm = sys.modules.get("tqdm")
        if tqdm is not None and sys.stderr.isatty():
            tqdm.tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


class CompactFormatter(logging.Formatter):
    """`12:30:01 rendering  message`, the module without its package."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; two words name where it comes from and, above INFO, how bad it is."""
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
    for old in [each for each in root.handlers if type(each).__module__.startswith(("prefect", __name__))]:
        root.removeHandler(old)
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
    """Adds a log file, in which errors have their tracebacks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


def log_failure(error: BaseException) -> Path | None:
    """Writes a traceback to the log file and says where that is; None where there is no log file."""
    path = log_file()
    if path is not None:
        logger.error("the command failed", exc_info=error, extra={"file_only": True})
    return path


def log_file() -> Path | None:
    """The log file of this process, where there is one."""
    handlers = (each for each in logging.getLogger().handlers if isinstance(each, logging.FileHandler))
    return next((Path(each.baseFilename) for each in handlers), None)


def end_on_signals() -> None:
    """Ctrl-C and SIGTERM end this process with one line; finished shards and checkpoints are on disk already."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        os.write(2, f"\nip2p: interrupted. {GOES_ON}\n".encode())
        _end_children()
        os._exit(128 + number)

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)


def _end_children() -> None:
    """Asks child processes to end and waits, so that the next command meets none of them."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        try:
            child.terminate()
        except psutil.Error:
            continue
    psutil.wait_procs(children, timeout=GRACE_SECONDS)


GOES_ON = "The same command goes on from here."


def first_line(error: BaseException) -> str:
    """Of an error's message; the error's kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_mistake(error: BaseException) -> bool:
    """Whether something wrong was asked for, rather than something broke."""
    return isinstance(error, ValueError | FileNotFoundError)


def told_in_a_line(error: BaseException) -> str:
    """What a person is told of an error: all of a mistake's message, of anything else its kind and first line."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space is left on the disk ({error.filename or 'while writing'}). Make some. {GOES_ON}"
    if is_mistake(error):
        return " ".join(line.strip() for line in str(error).strip().splitlines()) or first_line(error)
    kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
    return f"{kind}{first_line(error)}"
