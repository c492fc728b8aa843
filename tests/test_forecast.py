"""Plan: the sample scaled to the whole, and a plan of the sample itself equals the sample."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ip2p import plan, prompts, rendering
from ip2p.cli import main
from ip2p.config import PipelineConfig
from ip2p.plan import Sample

SAMPLE = Sample(
    captions=10,
    triplets=25,
    candidates=100,
    accepted=30,
    kept_pairs=60,
    prompt_seconds=5.0,
    render_seconds=50.0,
    bytes_kept=6_000_000,
)


def test_a_plan_scales_what_was_measured(tiny_config: PipelineConfig) -> None:
    costs = plan.forecast(SAMPLE, tiny_config, 450_000)
    assert (costs.captions, costs.renders, costs.accepted) == (180_000, 1_800_000, 540_000)
    assert costs.render_hours == pytest.approx(1_800_000 * 0.5 / 3600)
    assert costs.prompt_hours == pytest.approx(180_000 * 0.5 / 3600)
    assert costs.run_bytes == 1_080_000 * 100_000
    assert costs.dataset_bytes == 540_000 * 100_000
    assert costs.shards == 90_000
    text = plan.describe(SAMPLE, costs, tiny_config, 8)
    assert "450,000" in text and "34.38 hours on 8 devices" in text and "Assumed" in text


def test_a_sample_is_made_by_the_real_stages_and_leaves_nothing_behind(tiny_config: PipelineConfig) -> None:
    config = replace(tiny_config, prompts=replace(tiny_config.prompts, shard_size=2))
    sample = plan.measure_sample(config, 2)
    assert not list(config.out.iterdir())
    counts = [
        (prompts.write_shard(config, number).counts, rendering.write_shard(config, number).counts) for number in (0, 1)
    ]
    assert sample.triplets == counts[1][0]["kept"]
    assert (sample.candidates, sample.accepted) == (counts[1][1]["candidates"], counts[1][1]["accepted"])


def test_too_few_captions_and_empty_samples_are_said(
    tiny_config: PipelineConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="has 4. Give --sample 2 or less"):
        plan.measure_sample(tiny_config, 3)
    with pytest.raises(ValueError, match="no triplet of the sample"):
        plan.forecast(replace(SAMPLE, triplets=0), tiny_config)
    assert main(["plan", "shapes", "--sample", "many"]) == 2
    assert "--sample: expected a whole number" in capsys.readouterr().err
