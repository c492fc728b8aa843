"""Who is rendered next: never more than a triplet needs, never less, in whatever batches."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from ip2p.config import FilteringConfig, Thresholds
from ip2p.config.filtering import Selection
from ip2p.filtering import judge
from ip2p.records import Candidate, EditTriplet, PairScores, RenderSpec, ScoredCandidate
from ip2p.rendering.candidates import CandidateQueue, Key, even_size, key_of

THRESHOLDS = Thresholds(original=0, edited=0, direction=0.5, image=0)


def candidate(triplet: int, number: int, *, guidance_scale: float = 1.0) -> Candidate:
    record = EditTriplet(original_prompt=f"{triplet}", edit_prompt="-", edited_prompt="-")
    spec = RenderSpec(
        triplet_id=record.id, candidate=number, seed=number, guidance_scale=guidance_scale, p2p=0.0, shared_steps=0.0
    )
    return Candidate(triplet=record, spec=spec)


def settled(candidates: Sequence[Candidate], outcome: dict[Key, bool]) -> list[ScoredCandidate]:
    found = [scores(outcome[key_of(each)]) for each in candidates]
    return [
        ScoredCandidate(candidate=each, scores=measured, verdict=judge(measured, THRESHOLDS))
        for each, measured in zip(candidates, found, strict=True)
    ]


def scores(accepted: bool) -> PairScores:
    return PairScores(original=1.0, edited=1.0, direction=1.0 if accepted else 0.0, image=1.0)


def run(queue: CandidateQueue, outcome: dict[Key, bool], rng: random.Random) -> list[Key]:
    """Renders until the queue is dry, in batches of chance sizes; returns what was rendered."""
    rendered: list[Key] = []
    while batch := queue.take(rng.randint(1, 7)):
        assert len({each.spec.guidance_scale > 1 for each in batch}) == 1
        rendered += [key_of(each) for each in batch]
        queue.settle(settled(batch, outcome))
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


@pytest.mark.parametrize(("num", "sizes"), [(70, [32, 19, 19]), (64, [32, 32]), (33, [17, 16]), (5, [5]), (1, [1])])
def test_no_small_batch_is_left_at_the_end(num: int, sizes: list[int]) -> None:
    candidates = [candidate(t, 0) for t in range(num)]
    queue = CandidateQueue(candidates, FilteringConfig(thresholds=THRESHOLDS))
    assert [len(batch) for batch in iter(lambda: queue.take(32), [])] == sizes
    assert all(even_size(left, 32) >= min(16, left) for left in range(1, 200))


def batches_of(
    queue: CandidateQueue, outcome: dict[Key, bool], size: int, *, ahead: bool
) -> tuple[list[list[Key]], int]:
    """Renders until the queue is dry, with batches taken ahead of verdicts if that can be, and counts those."""
    batches, num_ahead = list[list[Key]](), 0
    unsettled: list[Candidate] = []
    while True:
        batch = queue.take(size, num_unsettled=len(unsettled)) if ahead or not unsettled else []
        num_ahead += bool(batch and unsettled)
        if not batch and not unsettled:
            return batches, num_ahead
        queue.settle(settled(unsettled, outcome))
        unsettled = batch
        batches += [[key_of(each) for each in batch]] if batch else []


@pytest.mark.parametrize("selection", ["best", "first"])
def test_batches_taken_ahead_of_verdicts_are_those_taken_after_them(selection: Selection) -> None:
    rng, total = random.Random(0), 0
    for _ in range(60):
        scale = rng.choice([(1.0,), (1.0, 3.0), (1.0, 1.0, 1.0, 3.0)])
        candidates = [
            candidate(t, n, guidance_scale=rng.choice(scale)) for t in range(rng.randint(1, 60)) for n in range(3)
        ]
        outcome = {key_of(each): rng.random() < 0.5 for each in candidates}
        filtering = FilteringConfig(thresholds=THRESHOLDS, max_pairs_per_triplet=1, selection=selection)
        size = rng.randint(1, 9)
        after, none = batches_of(CandidateQueue(candidates, filtering), outcome, size, ahead=False)
        before, num_ahead = batches_of(CandidateQueue(candidates, filtering), outcome, size, ahead=True)
        assert before == after and none == 0
        total += num_ahead
        assert selection == "first" or num_ahead == len(after) - 1
    assert total > 100
