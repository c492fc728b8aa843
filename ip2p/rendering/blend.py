"""Local blend (Hertz et al., 2022, section 3.2): away from the changed words' places both sides keep the same latents.

A place belongs to a word where the cross-attention to it, summed over the steps so far and the layers of one
resolution, exceeds a share of its maximum. Words of the original are looked for in its maps, words of the edited
caption in the edited side's, as they are once shared.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ip2p.rendering.attention import WatchedWords

NEIGHBOURHOOD = 3
"""A place takes the largest value around it."""


class PlacesOfWords:
    """The sums of maps of N pairs: rows 0 … N - 1 for the originals' words that are gone, then for the edited's new."""

    def __init__(self, num_pairs: int) -> None:
        self._num = num_pairs
        self._sums: dict[int, Tensor] = {}

    def add(self, watched: WatchedWords) -> None:
        """Adds a step's maps."""
        for positions, found in watched.seen.items():
            sums = self._sums.setdefault(positions, found.new_zeros(2 * self._num, positions))
            sums.index_add_(0, watched.slots, found)

    def mask(self, size: tuple[int, int], threshold: float) -> Tensor:
        """(N, 1, h, w) bool at the latents' size: where a pair's sides may differ."""
        if not self._sums:
            raise ValueError(
                "local blend finds no layer with few enough positions. Raise rendering.blend_max_positions."
            )
        positions = max(self._sums)
        height, width = grid_of(positions, size)
        maps = self._sums[positions].view(-1, 1, height, width)
        maps = F.max_pool2d(maps, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2)
        maps = F.interpolate(maps, size=size)
        highest = maps.amax(dim=(2, 3), keepdim=True)
        found = (maps > threshold * highest) & (highest > 0)
        return found[: self._num] | found[self._num :]


def grid_of(positions: int, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a layer with so many positions, halved as often as need be from latents of `size`."""
    height, width = size
    while height * width > positions:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return height, width
