"""Who is rendered next: never more than a triplet needs, never less, in whatever batches."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from ip2p.config import FilteringConfig, Thresholds
from ip2p.filtering import judge
from ip2p.records import Candidate, EditTriplet, PairScores, RenderSpec, ScoredCandidate
from ip2p.rendering.candidates import CandidateQueue, Key, key_of

THRESHOLDS = Thresholds(original=0, edited=0, direction=0.5, image=0)


def candidate(triplet: int, number: int, *, guidance_scale: float = 1.0) -> Candidate:
    record = EditTriplet(original_prompt=f"{triplet}", edit_prompt="-", edited_prompt="-")
    spec = RenderSpec(
        triplet_id=record.id, candidate=number, seed=number, guidance_scale=guidance_scale, p2p=0.0, shared_steps=0.0
    )
    return Candidate(triplet=record, spec=spec)


def scores(accepted: bool) -> PairScores:
    return PairScores(original=1.0, edited=1.0, direction=1.0 if accepted else 0.0, image=1.0)


def run(queue: CandidateQueue, outcome: dict[Key, bool], rng: random.Random) -> list[Key]:
    """Renders until the queue is dry, in batches of chance sizes; returns what was rendered."""
    rendered: list[Key] = []
    while batch := queue.take(rng.randint(1, 7)):
        assert len({each.spec.guidance_scale > 1 for each in batch}) == 1
        rendered += [key_of(each) for each in batch]
        queue.settle(
            ScoredCandidate(
                candidate=each,
                scores=scores(outcome[key_of(each)]),
                verdict=judge(scores(outcome[key_of(each)]), THRESHOLDS),
            )
            for each in batch
        )
    assert queue.num_queued == len(rendered)
    return rendered


def up_to_the_last_needed(flags: Sequence[bool], num: int) -> int:
    """How many candidates one renders who renders one at a time and stops at `num` accepted."""
    for count in range(len(flags)):
        if sum(flags[:count]) == num:
            return count
    return len(flags)


@pytest.mark.parametrize("num_pairs", [1, 2, 5])
def test_a_triplet_is_rendered_up_to_its_last_needed_pair_and_no_further(num_pairs: int) -> None:
    rng = random.Random(num_pairs)
    for _ in range(40):
        budgets = [rng.randint(1, 9) for _ in range(rng.randint(1, 8))]
        candidates = [
            candidate(t, n, guidance_scale=rng.choice((1.0, 3.0)))
            for t, budget in enumerate(budgets)
            for n in range(budget)
        ]
        outcome = {key_of(each): rng.random() < 0.4 for each in candidates}
        filtering = FilteringConfig(thresholds=THRESHOLDS, max_pairs_per_triplet=num_pairs, selection="first")
        expected = {
            (candidate(t, 0).spec.triplet_id, n)
            for t, budget in enumerate(budgets)
            for n in range(
                up_to_the_last_needed([outcome[candidate(t, 0).spec.triplet_id, n] for n in range(budget)], num_pairs)
            )
        }
        rendered = run(CandidateQueue(candidates, filtering), outcome, rng)
        assert len(rendered) == len(set(rendered))
        assert set(rendered) == expected
        some = {key: passes for key, passes in outcome.items() if rng.random() < 0.5}
        rest = run(CandidateQueue(candidates, filtering, some), outcome, rng)
        assert set(rest) == expected - set(some)


def test_the_best_of_a_fixed_number_need_all_of_them() -> None:
    candidates = [candidate(t, n) for t in range(3) for n in range(4)]
    outcome = {key_of(each): True for each in candidates}
    filtering = FilteringConfig(thresholds=THRESHOLDS, max_pairs_per_triplet=1)
    rendered = run(CandidateQueue(candidates, filtering), outcome, random.Random(1))
    assert rendered == [key_of(each) for each in candidates]
    known = {key: key[1] % 2 == 0 for key in rendered}
    assert CandidateQueue(candidates, filtering, known).take(5) == []
