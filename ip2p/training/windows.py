"""Orders the samples of a cache of which only some parts are at hand: those of a window of parts, then of the next.

An epoch shows the parts in an order of its own, cut into windows. The rows of a window are shuffled among each other.
All is a function of seed and position, so that a training goes on at any step with the window of that step alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ip2p.training.draws import draw_order


class Window(NamedTuple):
    """A window by its epoch and its number in that."""

    epoch: int
    number: int


class WindowOrder:
    """An endless stream of samples, window by window, that shows each once an epoch."""

    def __init__(self, nums_rows: Sequence[int], parts_at_once: int, seed: int) -> None:
        """Takes how many rows each part has, and how many parts make a window."""
        self.starts = np.cumsum([0, *nums_rows])
        self.parts_at_once, self.seed = parts_at_once, seed
        self.num_samples = int(self.starts[-1])
        self.num_windows = -(-len(nums_rows) // parts_at_once)

    def samples(self, first: int, count: int) -> list[int]:
        """Draws samples number `first` to `first + count` of the stream."""
        pieces = [self._rows(window)[places] for window, places in self._pieces(first, count)]
        return [int(number) for number in np.concatenate(pieces)]

    def windows(self, first: int, count: int) -> list[Window]:
        """Returns the windows that these samples come from."""
        return [window for window, _ in self._pieces(first, count)]

    def parts(self, window: Window) -> list[int]:
        """Returns the parts of a window, some of which may have no rows."""
        start = window.number * self.parts_at_once
        return [int(part) for part in self._parts_in_order(window.epoch)[start : start + self.parts_at_once]]

    def after(self, window: Window) -> tuple[Window, int]:
        """Returns the window that follows one, and the number of its first sample."""
        first = window.epoch * self.num_samples + int(self._bounds(window.epoch)[window.number + 1])
        return self.windows(first, 1)[0], first

    def _pieces(self, first: int, count: int) -> Iterator[tuple[Window, slice]]:
        """Yields the windows of some samples and the samples' places in each."""
        while count > 0:
            epoch, place = divmod(first, self.num_samples)
            bounds = self._bounds(epoch)
            number = int(np.searchsorted(bounds, place, side="right")) - 1  # of windows without rows, none
            taken = min(count, int(bounds[number + 1]) - place)
            start = place - int(bounds[number])
            yield Window(epoch, number), slice(start, start + taken)
            first, count = first + taken, count - taken

    def _rows(self, window: Window) -> NDArray[np.int64]:
        """Returns the samples of a window, shuffled."""
        parts = [np.arange(self.starts[part], self.starts[part + 1]) for part in self.parts(window)]
        rows = np.concatenate(parts)
        shuffled: NDArray[np.int64] = rows[draw_order(len(rows), "window", self.seed, *window).numpy()]
        return shuffled

    def _bounds(self, epoch: int) -> NDArray[np.int64]:
        """Returns where the windows of an epoch start, and where the last one ends."""
        nums_rows = np.diff(self.starts)[self._parts_in_order(epoch)]
        sums = np.add.reduceat(nums_rows, np.arange(0, len(nums_rows), self.parts_at_once))
        return np.concatenate([[0], np.cumsum(sums)])

    def _parts_in_order(self, epoch: int) -> NDArray[np.int64]:
        order: NDArray[np.int64] = draw_order(len(self.starts) - 1, "parts", self.seed, epoch).numpy()
        return order
