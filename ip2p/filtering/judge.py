"""Decides which candidates become pairs: a pure function of their scores, so thresholds are re-tuned from the table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ip2p.config import FilteringConfig, Thresholds
from ip2p.records import Candidate, ClipScores, ScoredCandidate, Verdict

SCORES = ("original", "edited", "direction", "image")
"""In the order in which they are asked for; the first that is too low names the reason."""
OVER_LIMIT = "over_limit"


def judge(scores: ClipScores, thresholds: Thresholds) -> Verdict:
    """Accepts scores that reach every threshold; else the reason is `low_` and the first that does not."""
    for name in SCORES:
        if not getattr(scores, name) >= getattr(thresholds, name):  # not `<`: a NaN is no pass
            return Verdict(reason=f"low_{name}")
    return Verdict()


def thresholds_for(config: FilteringConfig, edit_type: str) -> Thresholds:
    """The edit type's own thresholds where it has any."""
    return config.per_edit_type.get(edit_type, config.thresholds)


def judge_candidate(candidate: Candidate, scores: ClipScores, config: FilteringConfig) -> Verdict:
    """By the thresholds of the candidate's edit type; the limit per triplet is `judge_all`'s to know."""
    return judge(scores, thresholds_for(config, candidate.triplet.edit_type))


def judge_all(scored: Sequence[ScoredCandidate], config: FilteringConfig) -> list[ScoredCandidate]:
    """Judges candidates anew, whatever was said of them before, and limits the pairs per triplet. Keeps the order."""
    judged = [_with_verdict(each, judge_candidate(each.candidate, each.scores, config)) for each in scored]
    surplus = _over_limit(judged, config)
    return [
        _with_verdict(each, Verdict(reason=OVER_LIMIT)) if index in surplus else each
        for index, each in enumerate(judged)
    ]


def count_verdicts(scored: Iterable[ScoredCandidate]) -> dict[str, int]:
    """Tallies: `candidates`, `accepted` and one entry per reason."""
    counts = {"candidates": 0, "accepted": 0}
    for each in scored:
        name = each.verdict.reason or "accepted"
        counts["candidates"] += 1
        counts[name] = counts.get(name, 0) + 1
    return counts


def _with_verdict(scored: ScoredCandidate, verdict: Verdict) -> ScoredCandidate:
    return replace(scored, verdict=verdict)


def _over_limit(judged: Sequence[ScoredCandidate], config: FilteringConfig) -> set[int]:
    """Indices of accepted candidates beyond the limit of their triplet: worse in direction, or later in number."""
    accepted: dict[str, list[int]] = defaultdict(list)
    for index, each in enumerate(judged):
        if each.verdict.accepted:
            accepted[each.candidate.spec.triplet_id].append(index)

    def rank(index: int) -> tuple[float, int]:
        direction = judged[index].scores.direction if config.selection == "best" else 0.0
        return -direction, judged[index].candidate.spec.candidate

    limit = config.max_pairs_per_triplet
    return {index for indices in accepted.values() for index in sorted(indices, key=rank)[limit:]}
