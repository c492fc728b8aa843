"""A first look of few steps drops what the filter would drop anyway, and is told apart from a full rendering."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ip2p import rendering
from ip2p.config import PipelineConfig, RenderingConfig, Thresholds
from ip2p.p2p.sampler import render_pairs
from ip2p.rendering.backends import p2p
from ip2p.store import RunFolder
from tests.test_rendering_candidates import write_triplets

LOOSE = Thresholds(original=-1, edited=-1, direction=-1, image=-1)


@pytest.fixture
def config(tiny_config: PipelineConfig) -> PipelineConfig:
    settings = replace(tiny_config.rendering, num_inference_steps=4, batch_size=2)
    return replace(tiny_config, rendering=settings, filtering=replace(tiny_config.filtering, first_look_slack=0.0))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Pairs rendered in so many steps."""
    counts: Counter[int] = Counter()

    def counted(pipeline: Any, candidates: Any, settings: RenderingConfig) -> Any:
        counts[settings.num_inference_steps] += len(candidates)
        return render_pairs(pipeline, candidates, settings)

    monkeypatch.setattr(p2p, "render_pairs", counted)
    return counts


def render(config: PipelineConfig, name: str, **settings: Any) -> PipelineConfig:
    """Renders a shard into a run of its own; returns its config."""
    there = replace(config, out=config.out.parent / name, rendering=replace(config.rendering, **settings))
    write_triplets(there)
    rendering.write_shard(there, 0)
    return there


def rows_of(config: PipelineConfig, stage: str = "candidates") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(RunFolder(config.out).shard(stage, 0)).to_pylist()
    return rows


def with_direction(config: PipelineConfig, least: float, slack: float = 0.0) -> PipelineConfig:
    limits = replace(LOOSE, direction=least)
    return replace(config, filtering=replace(config.filtering, thresholds=limits, first_look_slack=slack))


def test_only_what_passes_the_first_look_is_rendered_in_full(config: PipelineConfig, steps: Counter[int]) -> None:
    quick = rows_of(render(config, "quick", num_inference_steps=1))
    limit = float(np.median([row["clip_direction"] for row in quick]))
    full = {(row["triplet_id"], row["candidate"]): row for row in rows_of(render(config, "full"))}
    steps.clear()
    looking = render(with_direction(config, limit), "looking", first_look_steps=1, keep_rejected_images=True)
    rows = rows_of(looking)
    dropped = [row for row in rows if row["first_look"]]
    assert len(rows) == len(full) and 0 < len(dropped) < len(rows)
    assert {row["reason"] for row in dropped} == {"first_look"}
    assert [row["clip_direction"] < limit for row in quick] == [row["first_look"] for row in rows]
    assert steps == {1: len(rows), 4: len(rows) - len(dropped)}
    for row in rows:
        if not row["first_look"]:
            same = full[row["triplet_id"], row["candidate"]]
            assert row["clip_direction"] == pytest.approx(same["clip_direction"], abs=2e-3)  # batches differ
    assert len(rows_of(looking, "pairs")) == len(rows) - len(dropped)


def test_looser_thresholds_render_what_a_first_look_had_dropped(config: PipelineConfig, steps: Counter[int]) -> None:
    looking = render(with_direction(config, 2.0), "looking", first_look_steps=1)
    rows = rows_of(looking)
    assert all(row["first_look"] for row in rows) and steps == {1: len(rows)}
    steps.clear()
    rendering.write_shard(looking, 0)
    assert not steps
    loose = with_direction(looking, -1.0)
    counts = rendering.refilter(loose)
    assert counts["candidates"] == counts["accepted"] == len(rows)
    assert steps[4] == len(rows)
    assert rows_of(render(loose, "fresh"), "pairs") == rows_of(loose, "pairs")


def test_slack_lets_a_first_look_pass_that_is_a_little_too_bad(config: PipelineConfig, steps: Counter[int]) -> None:
    looking = render(with_direction(config, 2.0, slack=3.5), "looking", first_look_steps=1)
    assert {row["reason"] for row in rows_of(looking)} == {"low_direction"}
    assert steps[1] == steps[4]


@pytest.mark.slow
def test_the_first_accepted_are_found_with_a_first_look_too(config: PipelineConfig) -> None:
    full = rows_of(render(config, "full", num_candidates=6))
    middle = float(np.median([row["clip_direction"] for row in full]))
    first = replace(with_direction(config, middle, slack=2.5).filtering, selection="first", max_pairs_per_triplet=1)
    without = render(replace(config, filtering=first), "without", num_candidates=6)
    looking = render(replace(config, filtering=first), "looking", num_candidates=6, first_look_steps=1)
    assert rows_of(looking, "pairs") == rows_of(without, "pairs")


def test_a_first_look_has_fewer_steps_than_the_whole() -> None:
    with pytest.raises(ValueError, match=r"first_look_steps must be less than num_inference_steps \(8\), got 8"):
        RenderingConfig(num_inference_steps=8, first_look_steps=8)
