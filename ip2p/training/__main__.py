"""`accelerate launch -m ip2p.training`, with the flags of diffusers' InstructPix2Pix scripts.

A user's mistake ends with one line `error: …` and exit code 2, a request to stop with a checkpoint and exit code 130.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
import transformers

from ip2p.models.loading import keep_freed_memory
from ip2p.store import lock_file
from ip2p.training.flags import parse
from ip2p.training.launching import STOP_AT_END_OF_INPUT
from ip2p.training.loop import Interrupted, Stop
from ip2p.training.run import run

logger = logging.getLogger("ip2p.training")


def main(arguments: list[str] | None = None) -> int:
    """Runs one training; returns the exit code."""
    keep_freed_memory()
    is_main = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s", force=True)
    logging.getLogger("ip2p").setLevel(logging.INFO if is_main else logging.WARNING)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    stop = Stop().on_signals()
    if os.environ.get(STOP_AT_END_OF_INPUT):
        stop.on_end_of_input()
    try:
        job = parse(sys.argv[1:] if arguments is None else arguments)
        with _locked(Path(job.output_dir), is_main):
            run(job, stop)
    except ValueError as error:
        print(f"error: {error}", flush=True)
        return 2
    except Interrupted as error:
        print(error, flush=True)
        return 130
    return 0


@contextmanager
def _locked(folder: Path, is_main: bool) -> Iterator[None]:
    """Allows one training at a time in a folder; another one waits."""
    if not is_main:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_file(folder / ".lock")
    if lock is None:
        logger.warning("waiting for another training in %s to end", folder)
        lock = lock_file(folder / ".lock", wait=True)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


if __name__ == "__main__":
    sys.exit(main())
