"""`ip2p doctor`: prints findings as they are made, or all of them as JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

COLOURS = {"ok": "32", "warning": "33", "problem": "31"}
NOT_WRAPPED = 10**6
"""Columns that lines get if standard output is no terminal."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Arguments of `ip2p doctor`."""

    place: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DATA|MODEL")] = None
    """A run folder, a preset, data or a model. Default: this machine and the default preset."""
    checksums: bool = False
    """Compare every file of a run folder with its checksum; a start reads only those whose size or time changed."""
    json: bool = False
    """Print the findings as JSON."""


def doctor(arguments: Examination) -> None:
    """Says what would go wrong: the machine, the libraries, a run and what it would redo, data or a model."""
    from flows.server import describe_server
    from ip2p.doctor import examine

    counts, listed = Counter[str](), []
    for section in examine(arguments.place, prefect=describe_server, checksums=arguments.checksums):
        if not arguments.json:
            print(section.title)
        for finding in section.findings:
            counts[finding.status] += 1
            listed.append({"section": section.title, **asdict(finding)})
            if not arguments.json:
                print(_line(finding.status, finding.subject, finding.text), flush=True)
    if arguments.json:
        print(json.dumps({"findings": listed, "problems": counts["problem"]}, indent=2))
    else:
        print("\n" + ", ".join(f"{status}: {counts[status]}" for status in COLOURS))
    if counts["problem"]:
        sys.exit(1)


def _line(status: str, subject: str, text: str) -> str:
    width = shutil.get_terminal_size((NOT_WRAPPED, 0)).columns
    start = f"  {status:<8} {subject:<14} "
    line = textwrap.fill(text, max(width, 60), initial_indent=start, subsequent_indent=" " * len(start))
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        return line.replace(status, f"\033[{COLOURS[status]}m{status}\033[0m", 1)
    return line
