"""Runs a program unchanged and notes its peak memory on the card: `python -m tests.benchmarks.watched NOTE PROGRAM …`.

PROGRAM is a file, or the name of a module; what follows are its own arguments.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import torch


def main() -> None:
    """Runs it and writes the bytes to NOTE, however it ends."""
    note, program, *rest = sys.argv[1:]
    sys.argv[:] = [program, *rest]
    try:
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    finally:
        Path(note).write_text(str(torch.cuda.max_memory_allocated()))


if __name__ == "__main__":
    main()
