"""How long other thresholds take on a large table: `python -m tests.benchmarks.refilter --rows 1000000`.

Writes a run with made-up scores and one-pixel images, as a finished rendering stage leaves it, then judges it anew with
stricter thresholds and writes the dataset again. No model is loaded.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from ip2p import dataset, rendering, store
from ip2p.config import FilteringConfig, PipelineConfig, Thresholds
from ip2p.filtering import count_verdicts, judge_table
from ip2p.images import encode_image
from ip2p.presets import shapes
from ip2p.records import EditTriplet
from ip2p.rendering.shards import _shard
from ip2p.rendering.table import SCHEMA, EncodedPair, images_table, with_images
from ip2p.store import RunFolder

ROWS_PER_SHARD, CANDIDATES = 10_000, 4


def make_shard(config: PipelineConfig, number: int, pixel: bytes) -> None:
    """The triplets, candidates and pairs of a shard."""
    rng = np.random.default_rng(number)
    triplets = [
        EditTriplet(original_prompt=f"scene {number} {n}", edit_prompt="edit it", edited_prompt=f"edited {number} {n}")
        for n in range(ROWS_PER_SHARD // CANDIDATES)
    ]
    texts = {
        "triplet_id": [each.id for each in triplets],
        "original_prompt": [each.original_prompt for each in triplets],
        "edit_prompt": [each.edit_prompt for each in triplets],
        "edited_prompt": [each.edited_prompt for each in triplets],
        "edit_type": [("add", "colour", "size")[n % 3] for n in range(len(triplets))],
        "source": ["made up"] * len(triplets),
    }
    folder = RunFolder(config.out)
    triplets_path = folder.shard("triplets", number)
    kept = pa.table({**texts, "caption": texts["original_prompt"], "reason": [""] * len(triplets)})
    store.write_shard(triplets_path, kept, fingerprint="made up", seconds=0.0)
    places = np.repeat(np.arange(len(triplets)), CANDIDATES)
    columns = {name: pa.array(values).take(pa.array(places)) for name, values in texts.items()}
    for name in [name for name in SCHEMA.names if name not in texts]:
        kind = SCHEMA.field(name).type
        if pa.types.is_floating(kind):
            columns[name] = pa.array(rng.random(ROWS_PER_SHARD))
        elif pa.types.is_integer(kind):
            columns[name] = pa.array(np.tile(np.arange(CANDIDATES), len(triplets)))
        else:
            columns[name] = pa.nulls(ROWS_PER_SHARD, kind)
    table = judge_table(pa.table(columns, schema=SCHEMA), config.filtering)
    accepted = table.filter(table["accepted"])
    keys = zip(accepted["triplet_id"].to_pylist(), accepted["candidate"].to_pylist(), strict=True)
    images = images_table(dict.fromkeys(keys, EncodedPair(pixel, pixel)))
    shard = _shard(config, number)
    counts, extra = count_verdicts(table), {"scores_from": shard.scores_from}
    for path, content in ((shard.pairs, with_images(accepted, images)), (shard.candidates, table)):
        store.write_shard(path, content, fingerprint=shard.fingerprint, seconds=0.0, counts=counts, extra=extra)


def main() -> None:
    """Writes the run, judges it anew, writes its dataset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    loose = FilteringConfig(thresholds=Thresholds(original=0.2, edited=0.2, direction=0.2, image=0.2))
    strict = replace(loose, thresholds=replace(loose.thresholds, direction=0.6, image=0.5))
    with tempfile.TemporaryDirectory() as name:
        settings = shapes()
        settings = replace(settings, rendering=replace(settings.rendering, keep_rejected_images=False))
        config = replace(settings, out=Path(name), filtering=loose)
        pixel = encode_image(np.zeros((1, 1, 3), dtype=np.uint8), "png", 95)
        for number in range(rows // ROWS_PER_SHARD):
            make_shard(config, number, pixel)
        started = time.perf_counter()
        counts = rendering.refilter(replace(config, filtering=strict))
        judged = time.perf_counter()
        written = dataset.write_dataset(replace(config, filtering=strict))
        ended = time.perf_counter()
    print(f"{counts['candidates']} candidates judged anew in {judged - started:.1f} s, {counts['accepted']} accepted")
    print(f"dataset of {written['pairs']} pairs written in {ended - judged:.1f} s")


if __name__ == "__main__":
    main()
