"""What a first look of few steps saves and loses: `python -m tests.benchmarks.first_look`.

The same candidates of the shapes domain in so many steps, all in full, and with first looks of several lengths:
seconds, renders in full, pairs accepted, and how many of those that all in full accepts are lost. It pays where few are
accepted: `--stricter` raises the direction's thresholds. The last line is the best of accepted pairs per second over
those of all in full.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from ip2p.config import FilteringConfig, PipelineConfig
from ip2p.models import loading
from ip2p.presets import shapes
from ip2p.store import RunFolder
from tests.benchmarks.rendering import make_run

Pairs = set[tuple[str, int]]


def render(config: PipelineConfig) -> tuple[float, int, Pairs]:
    """Seconds, full renders and the accepted pairs of a first shard."""
    from ip2p.rendering import write_shard

    started = time.perf_counter()
    counts = write_shard(config, 0).counts
    seconds = time.perf_counter() - started
    rows = pq.read_table(RunFolder(config.out).shard("candidates", 0)).to_pylist()
    accepted = {(row["triplet_id"], row["candidate"]) for row in rows if row["accepted"]}
    return seconds, counts["candidates"] - counts.get("first_look", 0), accepted


def with_stricter(filtering: FilteringConfig, more: float) -> FilteringConfig:
    """The direction's thresholds higher by so much."""
    kinds = {
        kind: replace(limits, direction=limits.direction + more) for kind, limits in filtering.per_edit_type.items()
    }
    every = replace(filtering.thresholds, direction=filtering.thresholds.direction + more)
    return replace(filtering, thresholds=every, per_edit_type=kinds)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", type=int, default=50)
    parser.add_argument("--candidates", type=int, default=8, help="of each triplet")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--looks", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--slack", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--stricter", type=float, default=0.0, help="on top of the thresholds of the direction")
    options = parser.parse_args()
    rates: list[float] = []
    whole: Pairs = set()
    print("| steps of the first look | slack | seconds | rendered in full | accepted | lost of those in full |")
    print("|---|---|---|---|---|---|")
    for look, slack in [(None, 0.0), *((look, slack) for look in options.looks for slack in options.slack)]:
        with tempfile.TemporaryDirectory() as name:
            own = {
                kind: replace(settings, num_candidates=options.candidates)
                for kind, settings in shapes().rendering.per_edit_type.items()
            }
            steps = {"num_inference_steps": options.steps, "first_look_steps": look}
            settings = {**steps, "num_candidates": options.candidates, "per_edit_type": own}
            config = make_run(Path(name), options.triplets, keep_rejected_images=False, **settings)
            filtering = replace(
                with_stricter(config.filtering, options.stricter),
                first_look_slack=slack,
                max_pairs_per_triplet=options.candidates,
            )
            loading.load_clip(config.scoring.clip_model, None, device="auto")
            seconds, num_full, accepted = render(replace(config, filtering=filtering))
        whole = whole or accepted
        rates.append(len(accepted) / seconds)
        lost = len(whole - accepted)
        print(
            f"| {look or 'none'} | {slack:g} | {seconds:.1f} | {num_full} | {len(accepted)} "
            f"| {lost} ({lost / max(1, len(whole)):.1%}) |",
            flush=True,
        )
    print(f"\nratio: {max(rates[1:]) / rates[0]:.2f}")


if __name__ == "__main__":
    main()
