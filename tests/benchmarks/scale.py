"""What the steps without a model cost on large runs: `python -m tests.benchmarks.scale --candidates 10000 100000`.

Makes a run with invented scores, pictures of 8 x 8 pixels and embeddings, as finished prompt and rendering stages leave
it, nine triplets for every hundred candidates. Each step then works on it in a process of its own. Prints seconds,
microseconds per candidate and the most memory, imports aside and included. Time of a core is what the machine's other
work does not change much.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ip2p import dataset, plan, prompts, rendering, store, uses
from ip2p.config import EditTypeRendering, FilteringConfig, PipelineConfig, Thresholds
from ip2p.dataset import inspection
from ip2p.explain import explain
from ip2p.filtering import count_verdicts, judge_table
from ip2p.images import encode_image
from ip2p.presets import shapes
from ip2p.prompts import inspection as prompts_inspection
from ip2p.prompts.captions import read_entries
from ip2p.prompts.screening import length_check
from ip2p.rendering.shards import _shard
from ip2p.rendering.table import OPTIONAL_COLUMNS, SCHEMA, EncodedPair, images_table, with_images
from ip2p.report import write_report
from ip2p.store import RunFolder

KINDS = ("style", "colour", "shape", "size", "background", "add", "remove", "replace", "weather")
"""Edit types in turn; the first has one candidate more, so that nine triplets have a hundred candidates."""
NUM_CANDIDATES, PER_NINE = 11, 100
WIDTH, RANK = 768, 48
"""Numbers of an embedding, and how many of them vary freely."""
PICTURES = 64
WORDS = "red green blue small large old round soft dark light circle square house tree boat road hill lamp stone bird"
STRICTER = 0.72
"""The `direction` of the second filter; the first asks for 0.7."""


def config_of(folder: Path, shard_size: int) -> PipelineConfig:
    """Settings of a run that starts from ready triplets and keeps the images of accepted pairs."""
    base = shapes()
    limits = Thresholds(original=0.2, edited=0.2, direction=0.7, image=0.2)
    rendering_settings = replace(
        base.rendering,
        num_candidates=NUM_CANDIDATES,
        per_edit_type={KINDS[0]: EditTypeRendering(num_candidates=NUM_CANDIDATES + 1)},
        keep_rejected_images=False,
    )
    captions = replace(base.prompts, captions=str(folder / "triplets.jsonl"), shard_size=shard_size)
    return replace(
        base,
        out=folder / "run",
        prompts=captions,
        rendering=rendering_settings,
        filtering=FilteringConfig(thresholds=limits),
        evaluation=replace(base.evaluation, domain=None),
    )


def stricter(config: PipelineConfig) -> PipelineConfig:
    """The same with another threshold."""
    limits = replace(config.filtering.thresholds, direction=STRICTER)
    return replace(config, filtering=replace(config.filtering, thresholds=limits))


def with_limit(config: PipelineConfig) -> PipelineConfig:
    """The same without pairs that repeat others."""
    return replace(config, dataset=replace(config.dataset, max_duplicate_similarity=0.98))


def write_source(path: Path, num_triplets: int) -> None:
    """Writes ready triplets; two in a thousand say what another says."""
    words, rng = WORDS.split(), np.random.default_rng(0)
    chosen = rng.integers(0, len(words), (num_triplets, 5))
    with path.open("w") as file:
        for number, places in enumerate(chosen):
            one, two, three, four, five = (words[place] for place in places)
            name = number if number % 500 else number // 2
            triplet = {
                "original_prompt": f"a {one} {two} near a {three} {name}",
                "edit_prompt": f"make the {two} {four} {name}",
                "edited_prompt": f"a {four} {two} near a {five} {three} {name}",
                "edit_type": KINDS[number % len(KINDS)],
            }
            file.write(f"{json.dumps(triplet)}\n")


def write_candidates(config: PipelineConfig, number: int, pictures: list[bytes]) -> None:
    """Writes candidates and pairs of a shard as the rendering stage does."""
    rng = np.random.default_rng(number)
    texts = _kept_triplets(config, number)
    nums = np.where(np.array(texts["edit_type"].to_pylist()) == KINDS[0], NUM_CANDIDATES + 1, NUM_CANDIDATES)
    places, num = pa.array(np.repeat(np.arange(len(nums)), nums)), int(nums.sum())
    columns: dict[str, pa.Array | pa.ChunkedArray] = {name: texts[name].take(places) for name in texts.column_names}
    columns["candidate"] = pa.array(np.concatenate([np.arange(each) for each in nums]))
    columns["seed"] = pa.array(rng.integers(0, 2**62, num))
    for name in [name for name in SCHEMA.names if name not in columns]:
        kind = SCHEMA.field(name).type
        measured = pa.types.is_floating(kind) and (name.startswith("clip_") or name in ("guidance_scale", "p2p"))
        columns[name] = pa.array(rng.random(num)) if measured else pa.nulls(num, kind)
    table = judge_table(pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA), config.filtering)
    accepted = table.filter(table["accepted"])
    keys = list(zip(accepted["triplet_id"].to_pylist(), accepted["candidate"].to_pylist(), strict=True))
    images = images_table(dict(zip(keys, _pairs(rng, len(keys), pictures), strict=True)))
    shard = _shard(config, number)
    counts, extra = count_verdicts(table), {"scores_from": shard.scores_from}
    for path, content in ((shard.pairs, with_images(accepted, images)), (shard.candidates, table)):
        store.write_shard(
            path,
            content,
            fingerprint=shard.fingerprint,
            seconds=1.0,
            counts=counts,
            extra=extra,
            optional=OPTIONAL_COLUMNS,
        )


def _kept_triplets(config: PipelineConfig, number: int) -> pa.Table:
    path = RunFolder(config.out).shard("triplets", number)
    table = pq.read_table(path)
    kept = table.filter(pc.equal(table["reason"], ""))
    names = [name for name in kept.column_names if name in SCHEMA.names and name != "reason"]
    return kept.select(names).combine_chunks()


def _pairs(rng: np.random.Generator, num: int, pictures: list[bytes]) -> list[EncodedPair]:
    """Draws pairs: pictures of a few, and embeddings with a common direction, of which one in a hundred recurs."""
    basis = np.random.default_rng(0).normal(size=(RANK + 1, WIDTH)).astype(np.float32) / np.sqrt(WIDTH)
    numbers = rng.normal(size=(num, 2, RANK)).astype(np.float32) / np.sqrt(RANK)
    numbers[:, 1] = 0.8 * numbers[:, 0] + 0.6 * numbers[:, 1]
    again = rng.random(num) < 0.01
    numbers[again] = numbers[rng.integers(0, max(1, num), again.sum())]
    values = numbers @ basis[:RANK] + basis[RANK]
    values += 0.1 * rng.normal(size=values.shape).astype(np.float32) / np.sqrt(WIDTH)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    both = rng.integers(0, len(pictures), (num, 2))
    return [
        EncodedPair(pictures[one], pictures[other], value.astype(np.float16).tobytes())
        for (one, other), value in zip(both, values, strict=True)
    ]


def write_pairs(config: PipelineConfig) -> None:
    """Writes all candidates and pairs."""
    rng = np.random.default_rng(0)
    pictures = [
        encode_image(pixels, "png", 95) for pixels in rng.integers(0, 256, (PICTURES, 8, 8, 3)).astype(np.uint8)
    ]
    for number in range(prompts.num_shards(config)):
        write_candidates(config, number, pictures)
    rendering.summarise(config)


def write_triplets(config: PipelineConfig) -> None:
    """Goes through the prompt stage."""
    for number in range(prompts.num_shards(config)):
        prompts.write_shard(config, number)
    prompts.summarise(config)


def forecast(config: PipelineConfig) -> None:
    """Scales a sample to the run, as `ip2p plan` does once it has measured one."""
    sample = plan.Sample(
        captions=100,
        triplets=100,
        candidates=1100,
        accepted=200,
        kept_pairs=200,
        prompt_seconds=1.0,
        render_seconds=60.0,
        bytes_kept=10**6,
    )
    plan.forecast(sample, config)
    plan.disk_for_pairs(config, pixels=512 * 512)


def split(config: PipelineConfig) -> None:
    """Decides which pairs the dataset holds, in which split, file and order."""
    dataset.begin_dataset(config)
    dataset.plan_dataset(config)


def near_duplicates(config: PipelineConfig) -> None:
    """Finds pairs that repeat others."""
    limited = with_limit(config)
    for number in range(dataset.begin_dataset(limited)):
        dataset.compare_pairs(limited, number)
    dataset.plan_dataset(limited)


def resume(config: PipelineConfig) -> None:
    """Goes through all stages of a run whose results are there, but whose end was not noted."""
    for number in uses.shard_numbers(config):
        prompts.write_shard(config, number)
        rendering.write_shard(config, number)
    prompts.summarise(config)
    rendering.summarise(config)
    dataset.write_dataset(config)


def finish(config: PipelineConfig) -> None:
    """Notes the end of the run, as its last step does."""
    uses.write_config(config)
    uses.record_completion(config, "dataset")


def start_again(config: PipelineConfig) -> None:
    """Starts the finished run. RuntimeError if it does not count as finished."""

    def refuse() -> None:
        raise RuntimeError("the run is finished, and was started")

    uses.carry_out(config, "dataset", refuse)


STEPS: dict[str, Callable[[PipelineConfig], object]] = {
    "read the captions": lambda config: read_entries(config.prompts),
    "write triplets from ready lines": write_triplets,
    "(make candidates)": write_pairs,
    "plan": forecast,
    "split": split,
    "write the dataset": dataset.write_dataset,
    "near-duplicates": near_duplicates,
    "inspect triplets": prompts_inspection.describe,
    "inspect pairs": inspection.describe,
    "report": write_report,
    "resume, everything there": resume,
    "note the end": finish,
    "start the finished run": start_again,
    "explain": lambda config: explain(config, "dataset"),
    "refilter": lambda config: rendering.refilter(stricter(config)),
    "write the dataset again": lambda config: dataset.write_dataset(stricter(config)),
}
"""All steps in their order; what is in brackets is not a step of a run."""
QUADRATIC = "near-duplicates"


def take_step(name: str, config: PipelineConfig) -> tuple[float, float, float, float]:
    """Takes a step in a process of its own.

    Returns its seconds, those of a core, and the most memory in MiB: beyond what the imports take, and in all.
    """
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            _load_libraries(config)
            before, started, of_core = _memory(), time.perf_counter(), time.process_time()
            STEPS[name](config)
            took = time.perf_counter() - started, time.process_time() - of_core
            os.write(sender, json.dumps([*took, before]).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(sender)
    _, status, usage = os.wait4(child, 0)
    with os.fdopen(receiver) as told:
        if status:
            raise RuntimeError(f"{name} failed. Its traceback is above.")
        seconds, of_core, before = json.loads(told.read())
    most = usage.ru_maxrss / 1024
    return seconds, of_core, most - before, most


def _load_libraries(config: PipelineConfig) -> None:
    """Does once what the first table and the first text take longer for."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"reason": ["a"], "value": [1.0]}), buffer)
    table = pq.read_table(buffer)
    table.filter(pc.equal(table["reason"], "a")).to_pylist()
    length_check(config)("a text")


def _memory() -> float:
    """Returns the memory that this process holds, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def measure(candidates: int, arguments: argparse.Namespace) -> None:
    """Makes a run and prints a row for each step."""
    folder = Path(tempfile.mkdtemp(prefix=f"scale-{candidates}-", dir=arguments.folder))
    config = config_of(folder, arguments.shard_size)
    write_source(folder / "triplets.jsonl", candidates * len(KINDS) // PER_NINE)
    try:
        for name in arguments.steps or STEPS:
            if name == QUADRATIC and candidates > arguments.most_compared:
                continue
            seconds, of_core, added, most = take_step(name, config)
            each = of_core / candidates * 1e6
            row = f"{candidates:,} | {name} | {seconds:.2f} | {of_core:.2f} | {each:.1f} | {added:,.0f} | {most:,.0f}"
            print(f"| {row} |", flush=True)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)


def main() -> None:
    """Measures all sizes that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--shard-size", type=int, default=1000, help="triplets of a shard")
    parser.add_argument("--steps", nargs="+", choices=STEPS, help="steps to take, in this order; default: all")
    parser.add_argument("--most-compared", type=int, default=100_000, help="candidates up to which pairs are compared")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where runs are made")
    parser.add_argument("--keep", action="store_true", help="leave the runs there")
    arguments = parser.parse_args()
    print("| candidates | step | seconds | of a core | µs a candidate | MiB added | MiB in all |")
    print("|---|---|---|---|---|---|---|")
    for candidates in arguments.candidates:
        measure(candidates, arguments)


if __name__ == "__main__":
    main()
