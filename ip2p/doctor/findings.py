"""What the doctor says: findings in sections, each well, doubtful or wrong, with the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from ip2p.console import one_line
from ip2p.plan import GIB

Status = Literal["ok", "warning", "problem"]
"""Nothing to do; may go wrong or take longer; will go wrong."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about a subject."""

    status: Status
    subject: str
    text: str
    """One line; unless the status is ok, it ends with the way out."""


@dataclass(frozen=True, slots=True)
class Section:
    """Findings about one thing, made as they are read."""

    title: str
    findings: Iterable[Finding]


def look(subject: str, check: Callable[[], object]) -> Finding:
    """Returns what a check returns, in words, or the problem that it raises."""
    try:
        said = check()
        return Finding("ok", subject, ", ".join(said) or "none" if isinstance(said, list) else str(said))
    except Exception as error:  # whatever a library raises about a broken file is a finding
        return Finding("problem", subject, one_line(error))


def size_of(num_bytes: float) -> str:
    """Formats a size, such as `13.8 GiB`, and one below a tenth of that in MiB."""
    return f"{num_bytes / GIB:,.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / GIB * 1024:,.1f} MiB"
