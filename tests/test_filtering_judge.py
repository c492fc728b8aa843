"""Verdicts are a pure function of scores and thresholds."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p.config import FilteringConfig, Thresholds
from ip2p.filtering import (
    count_shown,
    count_verdicts,
    judge,
    judge_batch,
    judge_table,
    num_places_by_triplet,
    thresholds_for,
)
from ip2p.records import Candidate, EditTriplet, PairScores, RenderSpec, ScoredCandidate, Verdict
from ip2p.rendering.table import candidates_table, read_rows

SCORES = ("original", "edited", "direction", "image", "contrast", "ssim", "dino", "nsfw")
GOOD = PairScores(original=0.3, edited=0.3, direction=0.3, image=0.9)
TRIPLET = EditTriplet(original_prompt="a", edit_prompt="b", edited_prompt="c", edit_type="add")


def scored(number: int, scores: PairScores, triplet: EditTriplet = TRIPLET, reason: str = "") -> ScoredCandidate:
    spec = RenderSpec(triplet_id=triplet.id, candidate=number, seed=number, guidance_scale=7.5, p2p=0.5)
    return ScoredCandidate(
        candidate=Candidate(triplet=triplet, spec=spec), scores=scores, verdict=Verdict(reason=reason)
    )


def judge_all(candidates: list[ScoredCandidate], config: FilteringConfig) -> list[ScoredCandidate]:
    return read_rows(judge_table(candidates_table(candidates), config))


def reasons(judged: list[ScoredCandidate]) -> list[str]:
    return [each.verdict.reason for each in judged]


def test_scores_at_the_thresholds_are_accepted() -> None:
    assert judge(PairScores(original=0.2, edited=0.2, direction=0.2, image=0.7), Thresholds()).accepted


def test_the_reason_names_the_score_that_is_too_low() -> None:
    for name in ("original", "edited", "direction", "image"):
        low: dict[str, Any] = {name: 0.1}
        verdict = judge(replace(GOOD, **low), Thresholds())
        assert verdict == Verdict(reason=f"low_{name}")
        assert not verdict.accepted


def test_the_first_of_several_low_scores_is_the_reason() -> None:
    assert judge(replace(GOOD, edited=0.0, image=0.0), Thresholds()).reason == "low_edited"


def test_images_that_are_too_alike_are_rejected_where_asked() -> None:
    assert judge(GOOD, Thresholds(max_image=0.9)).accepted
    assert judge(GOOD, Thresholds(max_image=0.89)).reason == "high_image"
    assert judge(replace(GOOD, direction=0.0), Thresholds(max_image=0.89)).reason == "low_direction"


def test_further_scores_are_asked_for_only_where_they_have_a_threshold() -> None:
    plain = replace(GOOD, further={"contrast": 0.1})
    alike = replace(GOOD, further={"contrast": 0.1, "ssim": 0.95, "dino": 0.5})
    assert judge(plain, Thresholds()).accepted
    assert judge(plain, Thresholds(contrast=0.2)).reason == "low_contrast"
    assert judge(alike, Thresholds(max_ssim=0.9, dino=0.4)).reason == "high_ssim"
    assert judge(alike, Thresholds(max_ssim=0.9, dino=0.6)).reason == "low_dino"
    assert judge(plain, Thresholds(ssim=0.1)).reason == "low_ssim"  # not scored
    assert judge(plain, Thresholds(max_dino=0.9)).reason == "high_dino"


def test_a_score_that_is_not_a_number_is_never_accepted() -> None:
    assert judge(replace(GOOD, direction=math.nan), Thresholds(direction=-1.0)).reason == "low_direction"


def test_an_edit_type_has_its_own_thresholds_where_given() -> None:
    config = FilteringConfig(per_edit_type={"style": Thresholds(image=0.95)})
    style = replace(TRIPLET, edit_type="style", original_prompt="d")
    assert reasons(judge_all([scored(0, GOOD), scored(0, GOOD, style)], config)) == ["", "low_image"]


def test_over_the_limit_the_best_directions_stay_and_the_order_is_kept() -> None:
    directions = (0.3, 0.5, 0.4, 0.1, 0.6)
    candidates = [scored(number, replace(GOOD, direction=value)) for number, value in enumerate(directions)]
    judged = judge_all(candidates, FilteringConfig(max_pairs_per_triplet=2))
    assert reasons(judged) == ["over_limit", "", "over_limit", "low_direction", ""]
    assert [each.candidate for each in judged] == [each.candidate for each in candidates]


def test_equal_directions_are_ranked_by_candidate_number_in_any_order_of_rows() -> None:
    judged = judge_all([scored(2, GOOD), scored(0, GOOD), scored(1, GOOD)], FilteringConfig(max_pairs_per_triplet=2))
    assert reasons(judged) == ["over_limit", "", ""]


def test_the_limit_counts_each_triplet_apart() -> None:
    other = replace(TRIPLET, edit_prompt="z")
    candidates = [scored(0, GOOD), scored(1, GOOD), scored(0, GOOD, other)]
    assert reasons(judge_all(candidates, FilteringConfig(max_pairs_per_triplet=1))) == ["", "over_limit", ""]


def test_earlier_verdicts_do_not_count() -> None:
    candidates = [scored(0, GOOD, reason="low_image"), scored(1, replace(GOOD, image=0.0))]
    judged = judge_all(candidates, FilteringConfig())
    assert reasons(judged) == ["", "low_image"]
    assert judge_all(judged, FilteringConfig()) == judged


def test_counts_add_up_to_the_candidates() -> None:
    candidates = [scored(0, GOOD), scored(1, GOOD), scored(2, replace(GOOD, image=0.0))]
    counts = count_verdicts(judge_table(candidates_table(candidates), FilteringConfig(max_pairs_per_triplet=1)))
    assert counts == {"candidates": 3, "accepted": 1, "over_limit": 1, "low_image": 1}


def test_judging_does_not_load_torch() -> None:
    code = "import sys, ip2p.filtering; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_first_pairs_are_those_with_the_least_numbers_whatever_their_direction() -> None:
    rising = [scored(number, replace(GOOD, direction=0.3 + number / 100)) for number in (2, 0, 3, 1)]
    first, best = (
        judge_all(rising, FilteringConfig(max_pairs_per_triplet=2, selection=selection))
        for selection in ("first", "best")
    )
    assert reasons(first) == ["over_limit", "", "over_limit", ""]
    assert reasons(best) == ["", "over_limit", "", "over_limit"]


def first_reason(scores: PairScores, limits: Thresholds) -> str:
    """The rule, written out: a missing score or one that is not a number is within no bound."""
    for name in SCORES:
        value, least = scores.get(name), getattr(limits, name, None)
        if least is not None and (value is None or not value >= least):
            return f"low_{name}"
    for name in SCORES:
        value, most = scores.get(name), getattr(limits, f"max_{name}", None)
        if most is not None and (value is None or not value <= most):
            return f"high_{name}"
    return ""


def test_a_table_is_judged_as_its_rows_are() -> None:
    """Row by row with plain comparisons and a sort, on random scores, types and numbers in random order."""
    rng = random.Random(0)
    config = FilteringConfig(
        thresholds=Thresholds(original=0.3, edited=0.3, direction=0.4, image=0.2, max_image=0.9, ssim=0.2),
        per_edit_type={"add": Thresholds(original=0.0, edited=0.5, direction=0.1, image=0.5)},
        max_pairs_per_triplet=3,
    )
    candidates = []
    for number in range(40):
        triplet = replace(TRIPLET, original_prompt=str(number), edit_type=rng.choice(["add", "size", ""]))
        for candidate in range(rng.randint(1, 20)):
            values: dict[str, Any] = {name: math.nan if rng.random() < 0.05 else rng.random() for name in SCORES}
            values |= {"ssim": None if rng.random() < 0.1 else rng.random(), "dino": None}
            candidates.append(scored(candidate, PairScores.from_values(values.items()), triplet))
    rng.shuffle(candidates)
    for selection in ("best", "first"):
        chosen = replace(config, selection=selection)
        kept: dict[str, list[ScoredCandidate]] = {}
        expected = []
        for each in candidates:
            limits = thresholds_for(chosen, each.candidate.triplet.edit_type)
            expected.append(first_reason(each.scores, limits))
            if not expected[-1]:
                kept.setdefault(each.candidate.spec.triplet_id, []).append(each)
        verdicts = judge_batch([each.candidate for each in candidates], [each.scores for each in candidates], chosen)
        assert [verdict.reason for verdict in verdicts] == expected
        for some in kept.values():
            some.sort(key=lambda each: each.candidate.spec.candidate)
            if selection == "best":
                some.sort(key=lambda each: -each.scores.direction)
            for each in some[3:]:
                expected[candidates.index(each)] = "over_limit"
        table = judge_table(candidates_table(candidates), chosen)
        assert table["reason"].to_pylist() == expected
        assert table["accepted"].to_pylist() == [not reason for reason in expected]
        by_triplet = num_places_by_triplet(table)
        assert sum(num for num, _ in by_triplet.values()) == len(candidates)
        assert {name: num for name, (_, num) in by_triplet.items() if num} == {
            name: min(3, len(some)) for name, some in kept.items()
        }


def test_an_empty_table_is_judged() -> None:
    assert count_verdicts(judge_table(candidates_table([]), FilteringConfig())) == {"candidates": 0, "accepted": 0}


def test_pairs_are_counted_by_what_the_judge_says_that_they_show_whatever_columns_a_shard_has(tmp_path: Path) -> None:
    rows = {"edit_prompt": ["a", "b", "c", "d"], "accepted": [True, True, True, False]}
    pq.write_table(pa.table(rows | {"shown_prompt": ["a", "x", None, "y"]}), tmp_path / "all.parquet")
    pq.write_table(pa.table(rows), tmp_path / "without.parquet")
    shards = sorted(tmp_path.iterdir())
    assert count_shown(shards) == {"rewritten": 1, "as_written": 1, "unnamed": 1 + 3}
