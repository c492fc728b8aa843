"""Forecasts the cost of a dataset: runs the prompt and rendering stages on a few captions and scales the result.

The real stages make two shards of a few captions each in a temporary folder. The first loads the models and warms up
the machine, the second is measured.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from ip2p import store
from ip2p.config import PipelineConfig, TrainingConfig
from ip2p.prompts.captions import read_entries

GIB = 2**30
BYTES_PER_PIXEL = {"png": 1.5, "webp": 0.4, "jpeg": 0.6}
"""Of photographs at the default quality, roughly."""
BYTES_PER_WEIGHT = 4
"""Weights, gradients, moments and the average are float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Cost and yield of the measured shard."""

    captions: int
    triplets: int
    candidates: int
    accepted: int
    kept_pairs: int
    """Pairs whose images were kept: the accepted ones, or all."""
    prompt_seconds: float
    render_seconds: float
    bytes_kept: int
    """Size of those pairs on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The sample scaled to a whole config, on one device."""

    captions: int
    triplets: int
    renders: int
    """Candidates; each is two images."""
    accepted: int
    prompt_hours: float
    render_hours: float
    run_bytes: int
    """Size of the kept pairs."""
    dataset_bytes: int
    """Size of the accepted pairs, which the dataset holds once more."""
    shards: int


def measure_sample(config: PipelineConfig, num_captions: int) -> Sample:
    """Makes two shards of `num_captions` each and measures the second. ValueError if there are too few captions."""
    from ip2p import prompts, rendering  # which import torch

    available = len(read_entries(config.prompts, config.out))
    if available < 2 * num_captions:
        raise ValueError(
            f"a sample of {num_captions} captions needs {2 * num_captions}, half of them to warm up; "
            f"{config.prompts.captions} has {available}. Give --sample {max(1, available // 2)} or less."
        )
    with tempfile.TemporaryDirectory(prefix="ip2p-plan-") as name:
        prompts_of_two = replace(config.prompts, shard_size=num_captions, num_captions=2 * num_captions)
        small = replace(config, out=Path(name), prompts=prompts_of_two)
        for number in range(2):
            triplets = prompts.write_shard(small, number)
            pairs = rendering.write_shard(small, number)
        path = store.RunFolder(small.out).shard("pairs", 1)
        kept = store.read_sidecar(path)
        return Sample(
            captions=num_captions,
            triplets=triplets.counts.get("kept", 0),
            candidates=pairs.counts["candidates"],
            accepted=pairs.counts["accepted"],
            kept_pairs=kept.rows if kept else 0,
            prompt_seconds=triplets.seconds,
            render_seconds=pairs.seconds,
            bytes_kept=path.stat().st_size,
        )


def forecast(sample: Sample, config: PipelineConfig, num_triplets: int | None = None) -> Forecast:
    """Scales a sample to all captions of the config, or to `num_triplets`. ValueError if it has no triplet."""
    if not sample.triplets:
        raise ValueError("no triplet of the sample was kept, so nothing can be forecast. Check the captions.")
    triplets = num_triplets or round(len(read_entries(config.prompts, config.out)) * sample.triplets / sample.captions)
    captions = round(triplets * sample.captions / sample.triplets)
    scale = triplets / sample.triplets
    accepted = round(scale * sample.accepted)
    bytes_per_pair = sample.bytes_kept / max(1, sample.kept_pairs)
    return Forecast(
        captions=captions,
        triplets=triplets,
        renders=round(scale * sample.candidates),
        accepted=accepted,
        prompt_hours=scale * sample.prompt_seconds / 3600,
        render_hours=scale * sample.render_seconds / 3600,
        run_bytes=round(scale * sample.bytes_kept),
        dataset_bytes=round(accepted * bytes_per_pair),
        shards=-(-captions // config.prompts.shard_size),
    )


def disk_for_pairs(config: PipelineConfig, pixels: int) -> int:
    """Estimates the most bytes that a run has yet to write for its pairs, and for the dataset, which holds them again.

    Shards are taken to be like the finished ones; if there are none, all candidates are accepted, of `pixels` each.
    ValueError if the captions cannot be read.
    """
    num_captions = len(read_entries(config.prompts, config.out))
    num_shards = math.ceil(num_captions / config.prompts.shard_size)
    sizes = [path.stat().st_size for path in store.RunFolder(config.out).shards("pairs")]
    if sizes:
        per_shard = sum(sizes) / len(sizes)
    else:
        of_types = (settings.num_candidates or 0 for settings in config.rendering.per_edit_type.values())
        kept = max(config.rendering.num_candidates, *of_types, 0)
        if not config.rendering.keep_rejected_images:
            kept = min(kept, config.filtering.max_pairs_per_triplet)
        num_pairs = num_captions * config.prompts.num_triplets_per_caption * kept
        per_shard = num_pairs / num_shards * 2 * pixels * BYTES_PER_PIXEL[config.rendering.image_format]
    return round(per_shard * (2 * num_shards - len(sizes)))


def disk_for_training(config: TrainingConfig, num_weights: int) -> int:
    """Estimates the bytes of the checkpoints, one more than are kept, and of the editor; adapters take next to none."""
    if config.use_lora:
        return BYTES_PER_WEIGHT * num_weights
    num_steps = config.max_train_steps or config.checkpointing_steps
    num_checkpoints = math.ceil(num_steps / config.checkpointing_steps)
    if config.checkpoints_total_limit:
        num_checkpoints = min(num_checkpoints, config.checkpoints_total_limit)
    averages = config.use_ema or config.optim == "schedule_free"
    copies = 3 + averages + _further_states(config)  # the weights, two moments, the average
    return BYTES_PER_WEIGHT * num_weights * (copies * (num_checkpoints + 1) + 1)


def memory_for_training(config: TrainingConfig, num_weights: int) -> int:
    """Returns the bytes that a training of `num_weights` takes on its device before it sees any picture."""
    if config.use_lora:
        return BYTES_PER_WEIGHT * num_weights
    averages = config.use_ema and not config.offload_ema and config.optim != "schedule_free"
    return BYTES_PER_WEIGHT * num_weights * (4 + averages + _further_states(config))  # gradients too


def _further_states(config: TrainingConfig) -> int:
    """Returns how many numbers a weight's state has beside two: Prodigy keeps the first weights and a sum too."""
    return 2 if config.optim == "prodigy" else 0


def describe(sample: Sample, costs: Forecast, config: PipelineConfig, devices: int) -> str:
    """Writes the forecast and its assumptions as text."""
    rate = sample.candidates / sample.render_seconds if sample.render_seconds else 0.0
    total = costs.prompt_hours + costs.render_hours
    lines = [
        ("captions", f"{costs.captions:,}"),
        ("triplets", f"{costs.triplets:,}"),
        ("renders", f"{costs.renders:,} ({sample.candidates / sample.triplets:.2f} a triplet)"),
        ("accepted pairs", f"{costs.accepted:,} ({sample.accepted / max(1, sample.candidates):.1%} of the renders)"),
        ("writing triplets", f"{costs.prompt_hours:,.2f} device-hours"),
        ("rendering", f"{costs.render_hours:,.2f} device-hours ({rate:,.2f} renders a second)"),
        ("wall time", f"{total / devices:,.2f} hours on {devices} device{'s' if devices > 1 else ''}"),
        ("storage", f"{costs.run_bytes / GIB:,.2f} GiB of pairs and {costs.dataset_bytes / GIB:,.2f} GiB of dataset"),
        ("shards", f"{costs.shards:,} of {config.prompts.shard_size:,} captions"),
    ]
    assumptions = (
        f"Measured on {sample.captions} captions with the models loaded: {sample.triplets} triplets in "
        f"{sample.prompt_seconds:.1f} s, {sample.candidates} renders in {sample.render_seconds:.1f} s, "
        f"{sample.accepted} accepted. Assumed: the other captions are like these, every device is like this one, "
        "devices share the shards evenly, and storage keeps up. Training and evaluation are not included."
    )
    return "\n".join([*(f"  {name:<17} {value}" for name, value in lines), "", assumptions])
