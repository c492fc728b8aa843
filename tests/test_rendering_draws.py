"""Draws are pure functions of (run seed, triplet, candidate number)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import stats

from ip2p.config import EditTypeRendering, RenderingConfig
from ip2p.records import EditTriplet
from ip2p.rendering.candidates import draw_candidates, draw_spec

CONFIG = RenderingConfig(guidance_scale=(7.5, 15.0), p2p=(0.1, 0.9), shared_steps=(0.2, 0.6))


def triplet(number: int = 0) -> EditTriplet:
    return EditTriplet(
        original_prompt=f"scene {number}", edit_prompt="make it blue", edited_prompt=f"blue scene {number}"
    )


def test_a_draw_is_the_same_in_any_order_and_for_any_other_settings() -> None:
    forward = [draw_spec(CONFIG, triplet(), number) for number in range(5)]
    backward = [draw_spec(CONFIG, triplet(), number) for number in reversed(range(5))]
    assert forward == backward[::-1]
    other = replace(CONFIG, num_inference_steps=7, batch_size=3, num_candidates=50, image_format="webp")
    assert draw_spec(other, triplet(), 3) == forward[3]


def test_seed_triplet_and_number_each_change_the_draw() -> None:
    base = draw_spec(CONFIG, triplet(), 0)
    others = [
        draw_spec(replace(CONFIG, seed=1), triplet(), 0),
        draw_spec(CONFIG, triplet(1), 0),
        draw_spec(CONFIG, triplet(), 1),
    ]
    assert len({(each.seed, each.guidance_scale, each.p2p) for each in [base, *others]}) == 4


def test_the_draws_are_uniform_and_independent_and_seeds_never_repeat() -> None:
    specs = [draw_spec(CONFIG, triplet(index), number) for index in range(500) for number in range(4)]
    guidance = np.array([spec.guidance_scale for spec in specs])
    p2p = np.array([spec.p2p for spec in specs])
    assert stats.kstest(guidance, stats.uniform(7.5, 7.5).cdf).pvalue > 0.001
    assert stats.kstest(p2p, stats.uniform(0.1, 0.8).cdf).pvalue > 0.001
    shared = np.array([spec.shared_steps for spec in specs])
    assert stats.kstest(shared, stats.uniform(0.2, 0.4).cdf).pvalue > 0.001
    assert np.abs(np.triu(np.corrcoef([guidance, p2p, shared]), 1)).max() < 0.08
    assert np.all((guidance >= 7.5) & (guidance <= 15.0) & (p2p >= 0.1) & (p2p <= 0.9))
    assert len({spec.seed for spec in specs}) == 2000
    assert all(0 <= spec.seed < 2**63 for spec in specs)


def test_candidates_are_numbered_from_zero() -> None:
    candidates = draw_candidates(replace(CONFIG, num_candidates=3), triplet())
    assert [candidate.spec.candidate for candidate in candidates] == [0, 1, 2]
    assert {candidate.spec.triplet_id for candidate in candidates} == {triplet().id}


def test_an_edit_type_can_have_draws_and_a_count_of_its_own() -> None:
    own = {"add": EditTypeRendering(num_candidates=7, shared_steps=(0.0, 0.1))}
    config = replace(CONFIG, num_candidates=2, per_edit_type=own)
    adding = replace(triplet(), edit_type="add")
    general, particular = draw_candidates(config, triplet()), draw_candidates(config, adding)
    assert (len(general), len(particular)) == (2, 7)
    assert all(each.spec.shared_steps <= 0.1 and 7.5 <= each.spec.guidance_scale <= 15.0 for each in particular)
    assert [each.spec for each in general] == [draw_spec(CONFIG, triplet(), number) for number in range(2)]
    assert [each.spec.seed for each in particular[:2]] == [each.spec.seed for each in general]
