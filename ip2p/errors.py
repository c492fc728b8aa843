"""What libraries raise, in words of one line."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Of an error's message; the error's kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
