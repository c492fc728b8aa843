"""What chance decides of a candidate, by hash: no draw depends on any other, nor on shards, order or resume."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace

from ip2p.config import FilteringConfig, RenderingConfig
from ip2p.filtering import judge_candidate
from ip2p.p2p.sampler import is_guided
from ip2p.records import (
    DRAWN_COLUMNS,
    Candidate,
    EditTriplet,
    PairScores,
    RenderSpec,
    ScoredCandidate,
    hash_to_seed,
    hash_to_unit,
)


def draw_spec(config: RenderingConfig, triplet: EditTriplet, number: int) -> RenderSpec:
    """The spec of a triplet's candidate `number`, a pure function of (seed, triplet, number) and the ranges."""
    key = (config.seed, triplet.id, number)
    config = settings_for(config, triplet.edit_type)
    return RenderSpec(
        triplet_id=triplet.id,
        candidate=number,
        seed=hash_to_seed(*key),
        **{name: _uniform(getattr(config, name), name, *key) for name in DRAWN_COLUMNS},
    )


def draw_candidates(config: RenderingConfig, triplet: EditTriplet) -> list[Candidate]:
    """A triplet's candidates, numbered from 0."""
    num = settings_for(config, triplet.edit_type).num_candidates
    return [Candidate(triplet=triplet, spec=draw_spec(config, triplet, number)) for number in range(num)]


def settings_for(config: RenderingConfig, edit_type: str) -> RenderingConfig:
    """The settings with the edit type's own in place of the general ones."""
    own = config.per_edit_type.get(edit_type)
    if own is None:
        return config
    return replace(config, **{name: value for name, value in asdict(own).items() if value is not None})


def _uniform(bounds: tuple[float, float], *key: object) -> float:
    low, high = bounds
    return low + (high - low) * hash_to_unit(*key)


Key = tuple[str, int]
"""(triplet id, candidate number)."""


def key_of(candidate: Candidate) -> Key:
    """What names a candidate in a shard."""
    return candidate.spec.triplet_id, candidate.spec.candidate


class CandidateQueue:
    """Hands out batches of candidates; each must be settled with its scores before the queue can run dry."""

    def __init__(
        self, candidates: Sequence[Candidate], filtering: FilteringConfig, known: Mapping[Key, PairScores] | None = None
    ) -> None:
        """`candidates` are a triplet's in the order of their numbers; those of `known` scores are never handed out."""
        self._filtering = filtering
        self._known = known or {}
        self._later: dict[str, deque[Candidate]] = {}
        self._waiting: dict[bool, deque[Candidate]] = {False: deque(), True: deque()}
        """By whether they are guided: a batch computes the unconditional half for all of its pairs or for none."""
        self.num_asked = 0
        """Candidates handed out or waiting so far."""
        for candidate in candidates:
            self._later.setdefault(candidate.spec.triplet_id, deque()).append(candidate)
        at_once = filtering.max_pairs_per_triplet if filtering.selection == "first" else len(candidates)
        for triplet_id, later in self._later.items():
            for _ in range(min(at_once, len(later))):
                self._ask_next(triplet_id)

    def take(self, num: int) -> list[Candidate]:
        """At most `num` candidates, all guided or all not; none where no more are needed."""
        waiting = max(self._waiting.values(), key=len)
        return [waiting.popleft() for _ in range(min(num, len(waiting)))]

    def settle(self, scored: Iterable[ScoredCandidate]) -> None:
        """Says how candidates came out; a rejected one is followed by the next of its triplet."""
        for each in scored:
            if not each.verdict.accepted:
                self._ask_next(each.candidate.spec.triplet_id)

    def _ask_next(self, triplet_id: str) -> None:
        """Takes up a triplet's next candidate; one of known scores is settled at once, and so may be those after it."""
        later = self._later[triplet_id]
        while later:
            candidate = later.popleft()
            scores = self._known.get(key_of(candidate))
            if scores is None:
                self._waiting[is_guided(candidate.spec)].append(candidate)
                self.num_asked += 1
                return
            if judge_candidate(candidate, scores, self._filtering).accepted:
                return
