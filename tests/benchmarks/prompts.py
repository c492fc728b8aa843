"""How fast triplets are written, and how many of them are kept: `python -m tests.benchmarks.prompts`.

Asks the shipped language model of the shapes domain about some captions, in batches and one at a time, in turns, and
prints triplets per second and their ratio. Then asks for several triplets of each caption and prints the share that
parses, the share that is kept, and the reasons against the others, at the default's temperature and at higher ones.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ip2p.config import PipelineConfig, PromptsConfig, ScreeningConfig
from ip2p.models import loading
from ip2p.presets import shapes
from ip2p.prompts import write_shard
from ip2p.prompts.asking import Answer, Request
from ip2p.prompts.backends.transformers import CausalBackend
from ip2p.prompts.captions import read_entries
from ip2p.prompts.format import REASONS

NUM_TIMED, ROUNDS = 60, 3
NUM_JUDGED = 200
TEMPERATURES = (0.7, 1.0, 1.5)
STRICT = ScreeningConfig(near_duplicate=0.95, check_agreement=True, language="en")


def measure_speed(config: PipelineConfig) -> None:
    """Triplets per second in batches against one at a time."""
    model = loading.load_language_model(config.prompts.model, revision=None, device="cpu")
    requests = [Request(str(caption), 0) for caption in read_entries(config.prompts)[:NUM_TIMED]]
    rates: dict[int, list[float]] = {config.prompts.batch_size: [], 1: []}
    answers: list[list[Answer]] = []
    for _ in range(ROUNDS):
        for size, found in rates.items():
            sampling = PromptsConfig(temperature=0.7, max_new_tokens=64, seed=0, batch_size=size)
            started = time.perf_counter()
            answers.append(CausalBackend(model, sampling).answer(requests, on_answer=lambda num: None))
            found.append(len(requests) / (time.perf_counter() - started))
    assert all(each == answers[0] for each in answers)
    medians = {size: statistics.median(found) for size, found in rates.items()}
    print(f"{torch.get_num_threads()} threads, {', '.join(f'batch {s}: {r:.1f}/s' for s, r in medians.items())}")
    print(f"ratio {medians[config.prompts.batch_size] / medians[1]:.2f}")


def measure_validity(config: PipelineConfig, temperature: float, out: Path) -> None:
    """Shares that parse, that are kept as the default judges, and that are kept with every check of words as well."""
    prompts = replace(config.prompts, temperature=temperature, num_captions=NUM_JUDGED, shard_size=NUM_JUDGED)
    for name, screening in {"default": ScreeningConfig(), "strict": STRICT}.items():
        asked = replace(config, out=out, prompts=replace(prompts, screening=screening))
        counts = Counter(write_shard(asked, 0).counts)
        num, parsed = counts["generations"], counts["generations"] - counts["unparsable"]
        lost = ", ".join(f"{reason} {counts[reason]}" for reason in REASONS if counts[reason])
        shares = f"{parsed / num:.1%} parse, {counts['kept'] / num:.1%} kept"
        print(f"temperature {temperature}, {name} checks: {num} written, {shares} ({lost})")


def main() -> None:
    """Speed, then validity."""
    config = shapes()
    measure_speed(config)
    with TemporaryDirectory() as folder:
        for temperature in TEMPERATURES:
            measure_validity(config, temperature, Path(folder) / str(temperature))


if __name__ == "__main__":
    main()
