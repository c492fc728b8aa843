"""Plan: the sample scaled to the whole, and a plan of the sample itself equals the sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from ip2p import plan, prompts, rendering
from ip2p.cli import main
from ip2p.config import PipelineConfig, TrainingConfig
from ip2p.plan import Sample
from ip2p.store import RunFolder

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


def test_the_disk_that_pairs_need_is_that_of_those_which_are_there_once_more(tiny_config: PipelineConfig) -> None:
    config = replace(tiny_config, prompts=replace(tiny_config.prompts, shard_size=2))
    before = {name: with_format(config, name) for name in ("png", "webp")}
    assert before["png"] / before["webp"] == pytest.approx(1.5 / 0.4, rel=1e-3)
    for number in range(2):
        prompts.write_shard(config, number)
        rendering.write_shard(config, number)
    written = sum(path.stat().st_size for path in RunFolder(config.out).shards("pairs"))
    assert plan.disk_for_pairs(config, 64 * 64) == written


def with_format(config: PipelineConfig, name: Literal["png", "webp"]) -> int:
    return plan.disk_for_pairs(replace(config, rendering=replace(config.rendering, image_format=name)), 64 * 64)


def test_a_training_takes_what_the_faq_says() -> None:
    config = TrainingConfig(use_ema=False)
    for num_weights, plain, average in ((859_535_364, 13.8, 3.4), (2_567_477_764, 41.1, 10.3)):
        memory = plan.memory_for_training(config, num_weights)
        assert memory / 1e9 == pytest.approx(plain, abs=0.1)
        averaged = plan.memory_for_training(replace(config, use_ema=True), num_weights)
        assert (averaged - memory) / 1e9 == pytest.approx(average, abs=0.1)
        assert plan.memory_for_training(replace(config, use_lora=True), num_weights) < memory / 3
        assert plan.disk_for_training(config, num_weights) == 4 * num_weights * (3 * 3 + 1)


def test_too_few_captions_and_empty_samples_are_said(
    tiny_config: PipelineConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="has 4. Give --sample 2 or less"):
        plan.measure_sample(tiny_config, 3)
    with pytest.raises(ValueError, match="no triplet of the sample"):
        plan.forecast(replace(SAMPLE, triplets=0), tiny_config)
    assert main(["plan", "shapes", "--sample", "many"]) == 2
    assert "--sample: expected a whole number" in capsys.readouterr().err
