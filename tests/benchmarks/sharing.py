"""What each kind of sharing costs, and how many more pairs come out right: `python tests/benchmarks/sharing.py`.

Renders the same edits of drawn scenes with all that the default shares, without one kind of it, and without any, in
turns, one candidate each, and prints seconds, the share of right pairs and the ratios to the default.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from ip2p.config import RenderingConfig
from ip2p.models.loading import keep_freed_memory
from ip2p.models.pipelines import load_text_to_image
from ip2p.presets import shapes
from ip2p.records import EditTriplet
from ip2p.rendering import render_pairs
from ip2p.rendering.candidates import draw_candidates
from ip2p.shapes.domain import ShapesDomain

ROUNDS = 3


def render(config: RenderingConfig, triplets: list[EditTriplet]) -> tuple[float, int]:
    """(seconds, pairs that the oracle calls right)."""
    pipeline = load_text_to_image(
        config.model, revision=config.revision, variant=config.variant, dtype=config.dtype, device=config.device
    )
    domain = ShapesDomain()
    candidates = [candidate for triplet in triplets for candidate in draw_candidates(config, triplet)]
    started = time.perf_counter()
    pairs = list(render_pairs(pipeline, candidates, config))
    seconds = time.perf_counter() - started
    judged = [
        domain.judge_pair(candidate.triplet, pair.original, pair.edited)
        for candidate, pair in zip(candidates, pairs, strict=True)
    ]
    return seconds, sum(verdict.success for verdict in judged)


def main() -> None:
    """Measures in turns, so that a slow moment hits both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=210)
    triplets = [case.triplet for case in ShapesDomain().draw_cases(parser.parse_args().pairs, seed=0)]
    keep_freed_memory()
    default, none = replace(shapes().rendering, num_candidates=1, per_edit_type={}), (0.0, 0.0)
    variants = {
        "all": default,
        "no first steps": replace(default, shared_steps=none),
        "no cross-attention": replace(default, cross_p2p=none),
        "no self-attention": replace(default, p2p=none),
        "nothing": replace(default, shared_steps=none, cross_p2p=none, p2p=none),
    }
    render(default, triplets[: default.batch_size])
    seconds, right = dict.fromkeys(variants, 0.0), dict.fromkeys(variants, 0)
    for number in range(ROUNDS):
        for name, config in variants.items():
            took, found = render(replace(config, seed=number), triplets)
            seconds[name] += took
            right[name] += found
    num = ROUNDS * len(triplets)
    for name in variants:
        time_ratio = seconds[name] / seconds["all"]
        print(f"{name}: {right[name] / num:.1%} of {num} right; {seconds[name] / num:.4f} s a pair", end=", ")
        print(f"{time_ratio:.2f} x the time and {right[name] / right['all']:.2f} x the right pairs of all")


if __name__ == "__main__":
    main()
