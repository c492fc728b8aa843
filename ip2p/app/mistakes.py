"""Shows mistakes on the page in one line."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import gradio as gr

from ip2p.console import one_line

P = ParamSpec("P")
R = TypeVar("R")


def friendly(call: Callable[P, R]) -> Callable[P, R]:
    """Turns an error of a callback into a line on the page, without a traceback."""

    @wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except (ValueError, RuntimeError, OSError) as error:
            raise gr.Error(one_line(error), print_exception=False) from error

    return checked
