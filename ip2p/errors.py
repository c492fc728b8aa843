"""Errors in words of one line."""

from __future__ import annotations

import errno

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
