"""Proportions of what is shown: exact by round, the same from any step on, every sample before one is repeated."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from ip2p.training.mixing import MixedOrder, Rounds

SHAPES = [torch.Size((4, 8, 8)), torch.Size((4, 6, 10)), torch.Size((4, 10, 6))]


@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.25, 1.5, 0.0, 3.1), (0.01, 0.6)])
def test_rounds_hold_their_rates_and_are_the_same_from_any_entry_on(rates: tuple[float, ...]) -> None:
    rounds, shown = Rounds(rates, "test", 3), Counter[int]()
    entries = []
    for number in range(400):
        group, before = rounds.at(number)
        assert before == shown[group]
        shown[group] += 1
        entries.append(group)
    for turn in range(1, int(400 / sum(rates))):
        rounded = [int(turn * rate + 0.5) for rate in rates]
        assert [entries[: sum(rounded)].count(group) for group in range(len(rates))] == rounded
    assert Rounds(rates, "test", 3).at(250) == (entries[250], entries[:250].count(entries[250]))
    assert [Rounds(rates, "test", 4).at(number)[0] for number in range(400)] != entries
    assert Rounds(rates, "test", 3).at(10**9)[0] in np.flatnonzero(rates)


def test_rates_of_zero_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="one rate must be above zero") as refused:
        MixedOrder(0, 2, SHAPES[:1], [0, 0], [0, 0], [0.0, 1.0])
    assert "\n" not in str(refused.value)


def test_samples_of_all_sizes_come_equally_often_and_each_before_one_of_its_size_repeats() -> None:
    sizes = [0] * 9 + [1] * 5 + [2] * 1
    order = MixedOrder(1, 4, SHAPES, sizes, [0] * 15, [1.0])
    shown: list[list[int]] = [[], [], []]
    for step in range(15 * 8):
        samples = order.samples(step, 0, 4)
        (size,) = {sizes[sample] for sample in samples}
        assert order.shape(step) == SHAPES[size]
        shown[size] += samples
    for size, count in enumerate((9, 5, 1)):
        members = shown[size]
        passes = [members[start : start + count] for start in range(0, len(members) - count + 1, count)]
        assert all(len(set(each)) == count for each in passes)
        assert abs(len(members) - 8 * 4 * count) <= 4  # 32 epochs, up to a batch
    assert MixedOrder(1, 4, SHAPES, sizes, [0] * 15, [1.0]).samples(77, 1, 2) == order.samples(77, 0, 4)[1:3]


def test_groups_come_in_their_shares_whatever_the_size_of_their_samples() -> None:
    """The chance of a sample is its group's share over the group's samples, as in a plain weighted draw."""
    generator = np.random.default_rng(0)
    sizes, groups = generator.integers(0, 3, 60), generator.integers(0, 4, 60)
    shares = np.array([1.0, 3.0, 0.0, 0.5])
    order = MixedOrder(5, 6, SHAPES, sizes, groups, shares.tolist())
    steps = 6000
    shown = np.bincount([sample for step in range(steps) for sample in order.samples(step, 0, 6)], minlength=60)
    chances = shares[groups] / np.bincount(groups)[groups]
    np.testing.assert_allclose(shown, steps * 6 * chances / chances.sum(), atol=8)
