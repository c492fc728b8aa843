"""Which rows a step computes, and from whom the others take their prediction."""

from __future__ import annotations

from ip2p.rendering.steps import is_shared, plan_step
from tests.tiny import specs


def test_without_shared_steps_every_row_is_computed_for_itself() -> None:
    plan = plan_step(specs(p2p=(0.0, 0.0)), 0, 4, num_halves=2)
    assert plan.computed.tolist() == plan.result_of.tolist() == [0, 1, 2, 3]
    assert plan.attention_source is None


def test_an_edited_row_takes_its_own_pairs_original_in_its_own_half() -> None:
    source = plan_step(specs(p2p=(1.0, 0.0)), 0, 4, num_halves=2).attention_source
    assert source is not None
    assert source.tolist() == [0, 1, 0, 3, 4, 5, 4, 7]


def test_pairs_that_share_the_step_are_computed_once_and_attend_to_themselves() -> None:
    plan = plan_step(specs(p2p=(1.0, 1.0, 0.0), shared_steps=(0.5, 0.0, 0.0)), 1, 5, num_halves=2)
    assert plan.computed.tolist() == [0, 1, 2, 4, 5]
    assert plan.result_of.tolist() == [0, 1, 2, 0, 3, 4]
    assert plan.attention_source is not None
    assert plan.attention_source.tolist() == [0, 1, 2, 1, 4, 5, 6, 7, 6, 9]


def test_a_step_that_all_share_computes_originals_alone() -> None:
    plan = plan_step(specs(p2p=(1.0, 0.3), shared_steps=(1.0, 1.0)), 0, 5, num_halves=1)
    assert plan.computed.tolist() == [0, 1]
    assert plan.result_of.tolist() == [0, 1, 0, 1]
    assert plan.attention_source is None


def test_sharing_lasts_for_the_fraction_of_the_steps() -> None:
    assert not any(is_shared(0.0, step, 10) for step in range(10))
    assert [is_shared(0.5, step, 11) for step in range(11)] == [True] * 5 + [False] * 6
    assert [is_shared(1.0, step, 4) for step in range(4)] == [True, True, True, False]
    assert is_shared(0.5, 0, 1)
