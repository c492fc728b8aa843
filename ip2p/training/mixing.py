"""Draws samples in given proportions, and a batch's samples of one size, as functions of seed and step.

Sizes take turns by batch, groups by sample, each in rounds: what comes in a round is fixed by the rates, so that the
proportions hold at the end of every round up to half an entry, and its order is shuffled. Each group of a size shows
every sample before it repeats one.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from ip2p.config import TrainingConfig
from ip2p.training.cache import LatentCache
from ip2p.training.data import Rows
from ip2p.training.draws import BalancedOrder, EncodedPairs, SampleStream, draw_order
from ip2p.training.windows import WindowOrder

logger = logging.getLogger(__name__)


class Rounds:
    """An endless sequence of groups, of which each comes at its own rate per round."""

    def __init__(self, rates: Sequence[float], *key: object) -> None:
        """Takes the mean number of entries of each group per round. ValueError unless one is above zero."""
        self.rates, self.key = np.asarray(rates, dtype=np.float64), key
        if not self.rates.sum() > 0:
            raise ValueError(f"one rate must be above zero, got {list(rates)}. Give a weight to what is to be shown.")
        self._round: tuple[int, NDArray[np.int64]] = -1, np.zeros(0, dtype=np.int64)

    def at(self, number: int) -> tuple[int, int]:
        """Returns which group has the entry of this number, and how often it came before."""
        turn = self._turn_of(number)
        if self._round[0] != turn:
            counts = self._before(turn + 1) - self._before(turn)
            entries = np.repeat(np.arange(len(counts)), counts)
            self._round = turn, entries[draw_order(len(entries), "round", *self.key, turn).numpy()]
        before, entries = self._before(turn), self._round[1]
        place = number - int(before.sum())
        group = int(entries[place])
        return group, int(before[group]) + int(np.count_nonzero(entries[:place] == group))

    def _before(self, turn: int) -> NDArray[np.int64]:
        """Counts the entries of each group before a round."""
        return np.floor(turn * self.rates + 0.5).astype(np.int64)

    def _turn_of(self, number: int) -> int:
        low, high = 0, 1
        while self._before(high).sum() <= number:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._before(middle).sum() <= number else (low, middle)
        return low


class MixedOrder:
    """An endless stream of batches, each of samples of one size, with groups in given shares.

    A sample's chance is its group's share over the group's samples, whatever its size; a size comes as often as the
    chances of its samples add up to. Over as many samples as there are, an epoch, each comes once on average if the
    shares are the groups' sizes.
    """

    def __init__(
        self,
        seed: int,
        batch_size: int,
        shapes: Sequence[torch.Size],
        sizes: Sequence[int] | NDArray[np.int64],
        groups: Sequence[int] | NDArray[np.int64],
        shares: Sequence[float],
    ) -> None:
        """Takes how many samples a batch has, all processes together, and the shapes of the latents.

        Of each sample it takes the numbers of its shape and of its group, and of each group its share; they need not
        add up to 1. ValueError if no group with samples has a share.
        """
        self.seed, self.batch_size, self.shapes = seed, batch_size, shapes
        size_of, group_of = np.asarray(sizes), np.asarray(groups)
        num_sizes, num_groups = len(shapes), len(shares)
        members = np.bincount(group_of, minlength=num_groups)
        weights = np.where(members > 0, shares, 0.0)
        chances = weights / max(weights.sum(), np.finfo(float).tiny) / np.maximum(members, 1)
        by_size = np.zeros((num_sizes, num_groups))
        np.add.at(by_size, (size_of, group_of), chances[group_of])
        self.turns = Rounds(by_size.sum(1) * len(size_of) / batch_size, "sizes", seed)
        self.mixes = {
            size: Rounds(row / row.sum() * np.count_nonzero(row), "groups", seed, size)
            for size, row in enumerate(by_size)
            if row.sum() > 0
        }
        pairs = itertools.product(range(num_sizes), range(num_groups))
        self.members = {pair: np.flatnonzero((size_of == pair[0]) & (group_of == pair[1])) for pair in pairs}
        self._orders: dict[tuple[int, int], tuple[int, Tensor]] = {}

    def shape(self, micro_step: int) -> torch.Size:
        """Returns (C, H, W) of the latents that all processes take at a step."""
        return self.shapes[self.turns.at(micro_step)[0]]

    def samples(self, micro_step: int, first: int, count: int) -> list[int]:
        """Draws samples number `first` to `first + count` of a step's batch."""
        size, turn = self.turns.at(micro_step)
        start = turn * self.batch_size + first
        return [self._sample(size, number) for number in range(start, start + count)]

    def _sample(self, size: int, number: int) -> int:
        group, turn = self.mixes[size].at(number)
        members = self.members[size, group]
        cycle, position = divmod(turn, len(members))
        if self._orders.get((size, group), (-1,))[0] != cycle:
            order = draw_order(len(members), "members", self.seed, size, group, cycle)
            self._orders[size, group] = cycle, order
        return int(members[self._orders[size, group][1][position]])


def shares_of(
    sources: NDArray[np.int64], values: Sequence[str], config: TrainingConfig
) -> tuple[NDArray[np.int64], list[float]]:
    """Returns the number of each sample's group, a source's samples of one value, and the groups' shares.

    A source has the share that `data_weights` gives it, and divides it among its values by `balance_weights`; without
    `data_weights` the sources count as one. Without values they are shown as often as they have samples. ValueError
    for a weight of a value that no sample has.
    """
    present = sorted(set(values))
    if unknown := sorted(config.weights_by_value.keys() - set(present)):
        raise ValueError(
            f"balance_weights names {unknown[0]}, but the values of {config.balance_column} are "
            f"{', '.join(present[:20]) or 'none'}. Give one of them."
        )
    pools = sources if config.data_weights else np.zeros_like(sources)
    numbers = np.unique(values, return_inverse=True)[1] if values else np.zeros_like(sources)
    pairs, groups = np.unique(np.stack([pools, numbers]), axis=1, return_inverse=True)
    weights = [config.weights_by_value.get(present[value], 1.0) if present else 1.0 for value in pairs[1]]
    totals = np.bincount(pairs[0], weights)
    shares = [config.data_weights[pool] if config.data_weights else 1.0 for pool in pairs[0]]
    parts = zip(shares, weights, totals[pairs[0]], strict=True)
    return groups.reshape(-1), [share * weight / total if total else 0.0 for share, weight, total in parts]


def new_stream(
    pairs: EncodedPairs, config: TrainingConfig, timestep_chances: Tensor, accelerator: Accelerator, rows: Rows | None
) -> SampleStream:
    """Sets up the order of the samples: each once an epoch, balanced by a column, or of one size per batch."""
    values: list[str] = []
    if config.balance_column and rows is not None:
        of_rows = rows.values(config.balance_column)
        values = [str(of_rows[number]) for number in pairs.row_numbers]
        how = "by weight" if config.balance_weights else "equally often"
        logger.info("showing the %d values of %s %s", len(set(values)), config.balance_column, how)
    further = (pairs.latent_shape, timestep_chances, accelerator.process_index, accelerator.num_processes)
    if config.cache_window is not None and isinstance(pairs, LatentCache):
        windows = WindowOrder(pairs.part_sizes, config.cache_window, config.seed)
        logger.info("showing %d parts of the cache in %d windows", len(pairs.part_sizes), windows.num_windows)
        return SampleStream(config, len(pairs), *further, windows=windows)
    if not (config.aspect_ratio_buckets or config.data_weights or config.balance_weights):
        balanced = BalancedOrder(values, config.seed) if values else None
        return SampleStream(config, len(pairs), *further, balanced)
    shapes, sizes = [pairs.latent_shape], np.zeros(len(pairs), dtype=np.int64)
    if config.aspect_ratio_buckets and isinstance(pairs, LatentCache):
        shapes, sizes = pairs.shapes
        counts = zip(shapes, np.bincount(sizes), strict=True)
        logger.info("latents of %s", ", ".join(f"{high} x {wide}: {count} pairs" for (_, high, wide), count in counts))
    groups, shares = shares_of(pairs.source_numbers, values, config)
    batch_size = config.train_batch_size * accelerator.num_processes
    mixed = MixedOrder(config.seed, batch_size, shapes, sizes, groups, shares)
    return SampleStream(config, len(pairs), *further, mixed=mixed)
