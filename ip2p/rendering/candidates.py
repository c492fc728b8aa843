"""Draws candidates by hash, so that they do not depend on shards, order or resume, and queues those still needed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace

from ip2p.config import FilteringConfig, RenderingConfig
from ip2p.filtering import has_place
from ip2p.p2p.sampler import is_guided
from ip2p.records import (
    DRAWN_COLUMNS,
    Candidate,
    EditTriplet,
    RenderSpec,
    ScoredCandidate,
    hash_to_seed,
    hash_to_unit,
)


def draw_spec(config: RenderingConfig, triplet: EditTriplet, number: int) -> RenderSpec:
    """Draws the spec of a triplet's candidate `number`, a pure function of (seed, triplet, number) and the ranges."""
    key = (config.seed, triplet.id, number)
    config = settings_for(config, triplet.edit_type)
    bounds = {name: getattr(config, name) for name in DRAWN_COLUMNS if config.draws(name)}
    ranges: dict[str, tuple[float, float]] = {name: pair for name, pair in bounds.items() if pair is not None}
    drawn = {name: low + (high - low) * hash_to_unit(name, *key) for name, (low, high) in ranges.items()}
    return RenderSpec(triplet_id=triplet.id, candidate=number, seed=hash_to_seed(*key), **drawn)


def draw_candidates(config: RenderingConfig, triplet: EditTriplet) -> list[Candidate]:
    """Draws a triplet's candidates, numbered from 0."""
    num = settings_for(config, triplet.edit_type).num_candidates
    return [Candidate(triplet=triplet, spec=draw_spec(config, triplet, number)) for number in range(num)]


def settings_for(config: RenderingConfig, edit_type: str) -> RenderingConfig:
    """Returns the settings with the edit type's overrides."""
    overrides = config.per_edit_type.get(edit_type)
    if overrides is None:
        return config
    return replace(config, **{name: value for name, value in asdict(overrides).items() if value is not None})


Key = tuple[str, int]
"""(triplet id, candidate number)."""


def key_of(candidate: Candidate) -> Key:
    """Identifies a candidate in a shard."""
    return candidate.spec.triplet_id, candidate.spec.candidate


class CandidateQueue:
    """Hands out batches of candidates, each of which must be settled with its scores."""

    def __init__(
        self, candidates: Sequence[Candidate], filtering: FilteringConfig, settled: Mapping[Key, bool] | None = None
    ) -> None:
        """Takes each triplet's candidates in the order of their numbers.

        `settled` maps candidates that are rendered already, which are never handed out, to whether their scores pass.
        """
        self._settled = settled or {}
        self._later: dict[str, deque[Candidate]] = {}
        self._waiting: dict[bool, deque[Candidate]] = {False: deque(), True: deque()}
        """By whether they are guided: a batch computes the unconditional half for all of its pairs or for none."""
        self.num_queued = 0
        """Candidates handed out or waiting so far."""
        for candidate in candidates:
            self._later.setdefault(candidate.spec.triplet_id, deque()).append(candidate)
        at_once = filtering.max_pairs_per_triplet if filtering.selection == "first" else len(candidates)
        for triplet_id, later in self._later.items():
            for _ in range(min(at_once, len(later))):
                self._queue_next(triplet_id)

    def take(self, num: int, *, num_unsettled: int = 0) -> list[Candidate]:
        """Returns at most `num` candidates, all guided or all not; an empty list once no more are needed.

        While `num_unsettled` candidates are out, also an empty list if their verdicts could change the batch, so that
        batches are the same whether or not they are taken ahead.
        """
        waiting, fewer = sorted(self._waiting.values(), key=len, reverse=True)
        num_coming = num_unsettled if any(self._later.values()) else 0
        if num_coming and (len(waiting) < 2 * num or len(waiting) <= len(fewer) + num_coming):
            return []
        return [waiting.popleft() for _ in range(even_size(len(waiting), num))]

    def settle(self, scored: Iterable[ScoredCandidate]) -> None:
        """Takes verdicts back; a rejected candidate is followed by the next of its triplet."""
        for result in scored:
            if not has_place(result.verdict.reason):
                self._queue_next(result.candidate.spec.triplet_id)

    def _queue_next(self, triplet_id: str) -> None:
        """Queues a triplet's next candidate that is not settled, unless one before it passes."""
        later = self._later[triplet_id]
        while later:
            candidate = later.popleft()
            passes = self._settled.get(key_of(candidate))
            if passes is None:
                self._waiting[is_guided(candidate.spec)].append(candidate)
                self.num_queued += 1
            if passes is not False:
                return


def even_size(num_left: int, most: int) -> int:
    """Returns the size of the next batch: full while two full ones are left, so that the last two are of one size."""
    return min(most, num_left if num_left <= most else math.ceil(num_left / 2))
