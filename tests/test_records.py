"""The records: what their hashes promise, and that the candidates table gives back what went in."""

from __future__ import annotations

import dataclasses
import io
import statistics
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p.records import (
    Candidate,
    EditTriplet,
    PairScores,
    RenderSpec,
    ScoredCandidate,
    Verdict,
    content_hash,
    hash_to_seed,
    hash_to_unit,
)
from ip2p.rendering.table import as_row, from_row

TRIPLET = EditTriplet(
    original_prompt="a red circle on a blue background",
    edit_prompt="make the circle “green”",
    edited_prompt="a green circle on a blue background",
    edit_type="colour",
    source="a person",
)


def scored(reason: str = "") -> ScoredCandidate:
    """A candidate with awkward numbers in every field."""
    spec = RenderSpec(triplet_id=TRIPLET.id, candidate=3, seed=2**63 - 1, guidance_scale=1 / 3, p2p=0.1 + 0.2)
    scores = PairScores(original=0.1, edited=-0.25, direction=1e-17, image=1.0)
    return ScoredCandidate(
        candidate=Candidate(triplet=TRIPLET, spec=spec), scores=scores, verdict=Verdict(reason=reason)
    )


@pytest.mark.parametrize("reason", ["", "low_direction"])
def test_a_scored_candidate_comes_back_from_parquet_exactly(reason: str) -> None:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([as_row(scored(reason))]), file)
    (row,) = pq.read_table(file).to_pylist()
    assert from_row(row) == scored(reason)
    assert row["accepted"] is (reason == "")


def test_the_id_of_a_triplet_is_of_its_three_texts_alone() -> None:
    assert dataclasses.replace(TRIPLET, edit_type="", source="a model").id == TRIPLET.id
    for name in ("original_prompt", "edit_prompt", "edited_prompt"):
        assert dataclasses.replace(TRIPLET, **{name: "else"}).id != TRIPLET.id
    assert len(TRIPLET.id) == 16
    assert int(TRIPLET.id, 16) >= 0


def test_lists_of_parts_that_read_alike_have_different_hashes() -> None:
    alike = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("a", "b", "c")]
    assert len({content_hash(*parts) for parts in alike}) == len(alike)


def test_hashes_are_the_same_in_every_process() -> None:
    code = "from ip2p.records import *; print(content_hash('a', 1, 0.5), hash_to_unit('a', 1), hash_to_seed('a', 1))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [content_hash("a", 1, 0.5), str(hash_to_unit("a", 1)), str(hash_to_seed("a", 1))]


def test_units_are_spread_over_the_unit_interval() -> None:
    units = [hash_to_unit("draw", number) for number in range(4000)]
    assert 0 <= min(units) < 0.01
    assert 0.99 < max(units) < 1
    assert statistics.mean(units) == pytest.approx(0.5, abs=0.02)


def test_seeds_fit_a_signed_integer_and_differ() -> None:
    seeds = {hash_to_seed("run", number) for number in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_tells_nothing_of_the_unit_drawn_from_the_same_parts() -> None:
    assert hash_to_seed("a") / 2**63 != pytest.approx(hash_to_unit("a"), abs=1e-6)


def test_records_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TRIPLET.source = "else"  # type: ignore[misc]
