"""Makes what the next steps need on a thread of its own, while the present step is taken."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

T = TypeVar("T")
DEPTH = 2
"""How many numbers the thread is ahead."""


class Ahead(Generic[T]):
    """What a function makes of consecutive numbers below an end. The thread lasts as long as the context.

    The function must leave torch's global generators alone, whose numbers belong to the steps.
    """

    def __init__(self, make: Callable[[int], T], end: int, device: torch.device) -> None:
        self._make, self._end = make, end
        on_gpu = (torch.cuda.set_device, (device,)) if device.type == "cuda" else (None, ())
        self._thread = ThreadPoolExecutor(1, "ahead", *on_gpu)
        self._made: dict[int, Future[T]] = {}

    def take(self, number: int) -> T:
        """Returns what is made of a number; what fails on the thread is raised here, with its traceback."""
        upcoming = range(number, max(number + 1, min(number + 1 + DEPTH, self._end)))
        self._made = {each: self._made.get(each) or self._thread.submit(self._make, each) for each in upcoming}
        return self._made[number].result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
