"""Which rows a step computes, and from whom the others take their prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ip2p.p2p.alignment import TokenMap
from ip2p.p2p.steps import StepRows, StepShares, is_shared
from ip2p.records import RenderSpec
from tests.tiny import specs


def plan_step(pairs: Sequence[RenderSpec], step: int, num_steps: int, *, num_halves: int) -> StepRows:
    return StepShares.of(pairs, step, num_steps).plan(num_halves)


def sources(plan: StepRows) -> list[int]:
    """Of each computed row the one whose queries and keys it takes."""
    assert plan.itself is not None
    return plan.itself.distinct[plan.itself.place].tolist()


def test_without_shared_steps_every_row_is_computed_for_itself() -> None:
    plan = plan_step(specs(p2p=(0.0, 0.0)), 0, 4, num_halves=2)
    assert plan.computed.tolist() == plan.result_of.tolist() == [0, 1, 2, 3]
    assert plan.itself is None


def test_an_edited_row_takes_its_own_pairs_original_in_its_own_half() -> None:
    assert sources(plan_step(specs(p2p=(1.0, 0.0)), 0, 4, num_halves=2)) == [0, 1, 0, 3, 4, 5, 4, 7]


def test_pairs_that_share_the_step_are_computed_once_and_attend_to_themselves() -> None:
    plan = plan_step(specs(p2p=(1.0, 1.0, 0.0), shared_steps=(0.5, 0.0, 0.0)), 1, 5, num_halves=2)
    assert plan.computed.tolist() == [0, 1, 2, 4, 5]
    assert plan.result_of.tolist() == [0, 1, 2, 0, 3, 4]
    assert sources(plan) == [0, 1, 2, 1, 4, 5, 6, 7, 6, 9]


def test_a_step_that_all_share_computes_originals_alone() -> None:
    plan = plan_step(specs(p2p=(1.0, 0.3), shared_steps=(1.0, 1.0)), 0, 5, num_halves=1)
    assert plan.computed.tolist() == [0, 1]
    assert plan.result_of.tolist() == [0, 1, 0, 1]
    assert plan.itself is None


def test_sharing_lasts_for_the_fraction_of_the_steps() -> None:
    assert not any(is_shared(0.0, step, 10) for step in range(10))
    assert [is_shared(0.5, step, 11) for step in range(11)] == [True] * 5 + [False] * 6
    assert [is_shared(1.0, step, 4) for step in range(4)] == [True, True, True, False]
    assert is_shared(0.5, 0, 1)


def test_words_are_watched_where_they_are_attended_to_and_where_their_maps_come_from() -> None:
    """Two pairs that blend: the second takes its cross-attention maps from its original. A third one does not blend."""
    plain, taking, other = specs(p2p=(0.0, 0.0, 0.0))
    blending = [replace(plain, local_blend=1.0), replace(taking, local_blend=1.0, cross_p2p=1.0), other]
    plan = plan_step(blending, 0, 4, num_halves=2)
    matrix = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 0]]).expand(3, 3, 3)  # token 2 comes from token 1
    gone, new = torch.tensor([[0.0, 1, 0]]).expand(3, 3), torch.tensor([[0.0, 1, 1]]).expand(3, 3)
    watched = plan.watched_words(TokenMap(matrix, torch.tensor([[0.0, 1, 0]]).expand(3, 3), gone, new), 256)
    assert watched is not None
    assert watched.rows.tolist() == [6, 7, 9, 10, 7]
    assert watched.slots.tolist() == [0, 1, 3, 4, 4]
    assert watched.words.tolist() == [[0, 1, 0], [0, 1, 0], [0, 1, 1], [0, 1, 0], [0, 1, 0]]
    last = plan_step(blending, 3, 4, num_halves=2).is_blended
    assert plan.is_blended is None and last is not None
    assert last.tolist() == [True, True, False]
