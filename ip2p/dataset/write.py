"""The accepted pairs of a run, shuffled by hash, as parquet files that appear all at once.

Two passes, each over one file at a time: the first sends every row of the pairs to a spill file of its output, the
second puts each spill file in order and writes it. Everything lies in a hidden folder until a rename shows it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ip2p import store
from ip2p.config import PipelineConfig, fingerprint
from ip2p.dataset.card import describe_rejections, write_card
from ip2p.dataset.duplicates import find_near_duplicates, read_embeddings
from ip2p.dataset.schema import CHUNKING, COLUMNS, ROW_GROUP_BYTES, open_writer, schema
from ip2p.dataset.split import SPLITS, Split, side_of, split_pairs
from ip2p.records import content_hash, hash_to_unit

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LAYOUT = 1
"""Changes when the same pairs would be written differently."""
READ_ROWS = 64
_INDEX_COLUMNS = ["triplet_id", "candidate", "original_prompt", "edited_prompt", "edit_type", "source", "accepted"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an accepted pair lies among the pairs, and which texts decide its place in the dataset."""

    shard: int
    row: int
    captions: tuple[str, str]
    edit_type: str
    order: str
    lot: float
    """Of the triplet, in 0 to 1: `train_share` takes those below it."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A parquet file to write: its name and its rows, in order, as (shard, row)."""

    split: Split
    name: str
    rows: tuple[tuple[int, int], ...]


@store.summarised("dataset")
def write_dataset(config: PipelineConfig) -> dict[str, Any]:
    """Writes `dataset/` unless it is done; returns counts. ValueError with the way out where no pair was accepted."""
    started = time.monotonic()
    folder = store.RunFolder(config.out)
    _remove_leftovers(config.out)
    wanted = _fingerprint(config, folder)
    done = _finished(folder.dataset, wanted)
    if done is not None:
        logger.info("the dataset is done: %d pairs in %d files", done["pairs"], done["files"])
        return done
    shards = folder.shards("pairs")
    places = index_pairs(shards, config.dataset.seed)
    if not places:
        raise ValueError(describe_rejections(config))
    accepted = len(places)
    places = _unlike(places, shards, config.dataset.max_duplicate_similarity)
    unlike = len(places)
    splits = split_pairs((place.captions for place in places), config.dataset.test_fraction)
    places, splits = _share_of_training(places, splits, config.dataset.train_share)
    if config.dataset.train_share < 1 and "train" not in splits:
        share = config.dataset.train_share
        raise ValueError(
            f"dataset.train_share {share:g} leaves none of {unlike} pairs to train on. Take a larger share."
        )
    outputs = plan_files(places, splits, config.dataset.rows_per_shard)
    partial = config.out / ".dataset.partial"
    rows = _write_files(partial, shards, outputs)
    dropped = {"accepted": accepted, "near_duplicate": accepted - unlike, "beyond_share": unlike - len(places)}
    counts = dropped | _count(places, splits, outputs, config.dataset.test_fraction)
    write_card(config, partial, counts)
    counts["seconds"] = round(time.monotonic() - started, 3)
    store.write_json(partial / MANIFEST, {"fingerprint": wanted, "counts": counts, "files": rows})
    _swap(partial, folder.dataset)
    _log(counts)
    return counts


def _remove_leftovers(root: Path) -> None:
    """Clears what a run that was killed left half-written or half-swapped."""
    for name in (".dataset.partial", ".dataset.old"):
        if (root / name).exists():
            logger.info("removing %s, left by an interrupted run", name)
            shutil.rmtree(root / name)


def _fingerprint(config: PipelineConfig, folder: store.RunFolder) -> str:
    made_of = []
    for stage in ("triplets", "candidates", "pairs"):
        sidecars = (store.read_sidecar(path) for path in folder.shards(stage))
        made_of.append([sidecar.sha256 for sidecar in sidecars if sidecar is not None])
    return fingerprint("dataset", LAYOUT, config.dataset, config.rendering, config.filtering, made_of)


def _finished(dataset: Path, wanted: str) -> dict[str, Any] | None:
    try:
        manifest = store.read_json(dataset / MANIFEST)
        whole = manifest["fingerprint"] == wanted and all(
            store.sha256_of(dataset / file["path"]) == file["sha256"] for file in manifest["files"]
        )
        return dict(manifest["counts"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def index_pairs(shards: Sequence[Path], seed: int) -> list[Place]:
    """The accepted pairs of all shards, in the captions' order, without reading an image."""
    places = []
    for number, path in enumerate(shards):
        for row, pair in enumerate(pq.read_table(path, columns=_INDEX_COLUMNS).to_pylist()):
            if pair["accepted"]:
                captions = pair["original_prompt"], pair["edited_prompt"]
                if not all(captions):  # imported pairs without captions go by the picture they come from
                    captions = pair["source"], pair["source"]
                order = content_hash("order", seed, pair["triplet_id"], pair["candidate"])
                lot = hash_to_unit("share", pair["triplet_id"])
                places.append(Place(number, row, captions, pair["edit_type"], order, lot))
    return places


def _unlike(places: list[Place], shards: Sequence[Path], limit: float | None) -> list[Place]:
    """Without near-duplicates of earlier ones, if there is a limit; so pairs added at the end change none before."""
    if limit is None:
        return places
    embeddings = read_embeddings(shards, [(place.shard, place.row) for place in places])
    repeats = find_near_duplicates(embeddings, limit)
    return [place for place, is_repeat in zip(places, repeats, strict=True) if not is_repeat]


def _share_of_training(
    places: Sequence[Place], splits: Sequence[Split | None], share: float
) -> tuple[list[Place], list[Split | None]]:
    """Without the training pairs whose triplets are beyond the share; the rest stays where it was."""
    kept = [
        (place, split) for place, split in zip(places, splits, strict=True) if split != "train" or place.lot < share
    ]
    return [place for place, _ in kept], [split for _, split in kept]


def plan_files(places: Sequence[Place], splits: Sequence[Split | None], rows_per_shard: int) -> list[OutputFile]:
    """The files of each split, with the rows ordered by a hash, so that every stretch mixes captions and edit types."""
    outputs = []
    for split in SPLITS:
        chosen = [place for place, each in zip(places, splits, strict=True) if each == split]
        rows = [(place.shard, place.row) for place in sorted(chosen, key=lambda place: place.order)]
        num_files = math.ceil(len(rows) / rows_per_shard)
        for number in range(num_files):
            name = f"{split}-{number:05d}-of-{num_files:05d}.parquet"
            outputs.append(
                OutputFile(split, name, tuple(rows[number * rows_per_shard : (number + 1) * rows_per_shard]))
            )
    return outputs


def _write_files(folder: Path, shards: Sequence[Path], outputs: Sequence[OutputFile]) -> list[dict[str, Any]]:
    """Writes the planned files below `folder`; returns what the manifest says of each."""
    (folder / "data").mkdir(parents=True)
    spills = folder / ".spill"
    spills.mkdir()
    _spill(shards, outputs, spills)
    written = []
    for output in tqdm(outputs, desc="dataset", unit="file", disable=None, leave=False):
        path = folder / "data" / output.name
        digest = _write_file(path, output, spills / output.name)
        (spills / output.name).unlink()
        size = path.stat().st_size
        written.append({"path": f"data/{output.name}", "rows": len(output.rows), "bytes": size, "sha256": digest})
    spills.rmdir()
    return written


def _spill(shards: Sequence[Path], outputs: Sequence[OutputFile], spills: Path) -> None:
    """Appends every chosen row, with its place in the output, to the spill file of its output."""
    targets: dict[int, dict[int, tuple[str, int]]] = defaultdict(dict)
    for output in outputs:
        for position, (shard, row) in enumerate(output.rows):
            targets[shard][row] = output.name, position
    for shard, rows in tqdm(sorted(targets.items()), desc="gather", unit="shard", disable=None, leave=False):
        for first, batch in _batches(shards[shard]):
            mine: dict[str, list[tuple[int, int]]] = defaultdict(list)
            for offset in range(batch.num_rows):
                if first + offset in rows:
                    name, position = rows[first + offset]
                    mine[name].append((offset, position))
            for name, chosen in mine.items():
                _append(spills / name, batch, chosen)


def _batches(path: Path) -> Iterator[tuple[int, pa.RecordBatch]]:
    first = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=READ_ROWS, columns=list(COLUMNS)):
            yield first, batch.select(list(COLUMNS)).cast(schema().remove_metadata())
            first += batch.num_rows


def _append(path: Path, batch: pa.RecordBatch, chosen: Sequence[tuple[int, int]]) -> None:
    offsets, positions = zip(*chosen, strict=True)
    rows = batch.take(pa.array(offsets)).append_column("position", pa.array(positions, pa.int64()))
    with path.open("ab") as file, pa.ipc.new_stream(file, rows.schema) as stream:
        stream.write_batch(rows)


def _read_spill(path: Path, num_rows: int) -> list[pa.RecordBatch]:
    """The rows of a spill file as batches of one row, in order."""
    ordered: list[pa.RecordBatch | None] = [None] * num_rows
    with pa.memory_map(str(path)) as file:
        while file.tell() < file.size():
            for batch in pa.ipc.open_stream(file):
                for offset, position in enumerate(batch.column("position").to_pylist()):
                    ordered[position] = batch.select(list(COLUMNS)).slice(offset, 1)
    return [row for row in ordered if row is not None]


def _write_file(path: Path, output: OutputFile, spill: Path) -> str:
    """Writes one parquet file, flushed to disk; returns its SHA-256."""
    with open_writer(path) as writer:
        writer.add_key_value_metadata({"content_defined_chunking": json.dumps(CHUNKING)})
        for group in _row_groups(_read_spill(spill, len(output.rows))):
            writer.write_table(pa.Table.from_batches(group).combine_chunks().cast(schema()), row_group_size=len(group))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return store.sha256_of(path)


def _row_groups(rows: Sequence[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Cuts the rows into groups of at most `ROW_GROUP_BYTES`, each of at least one row."""
    group: list[pa.RecordBatch] = []
    size = 0
    for row in rows:
        if group and size + row.nbytes > ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(row)
        size += row.nbytes
    if group:
        yield group


def _swap(partial: Path, dataset: Path) -> None:
    old = dataset.with_name(".dataset.old")
    if dataset.exists():
        dataset.rename(old)
    partial.rename(dataset)
    shutil.rmtree(old, ignore_errors=True)


def _count(
    places: Sequence[Place], splits: Sequence[Split | None], outputs: Sequence[OutputFile], test_fraction: float
) -> dict[str, Any]:
    kept = [place for place, split in zip(places, splits, strict=True) if split]
    by_type = Counter(place.edit_type for place in kept)
    rows = Counter(split for split in splits if split)
    crossing = (place.captions for place, split in zip(places, splits, strict=True) if split is None)
    left_out = Counter(side_of(original, test_fraction) for original, _ in crossing)
    return {
        "pairs": len(kept),
        **{split: rows[split] for split in SPLITS},
        "split_conflict": sum(left_out.values()),
        "split_conflict_test": left_out["test"],
        "edit_types": dict(sorted(by_type.items())),
        "files": len(outputs),
    }


def _log(counts: dict[str, Any]) -> None:
    logger.info(
        "dataset: %d pairs (train %d, test %d) in %d files; left out: %d whose caption is in the other split, %d alike",
        *(counts[name] for name in ("pairs", *SPLITS, "files", "split_conflict", "near_duplicate")),
    )
    for split in SPLITS:
        if not counts[split]:
            logger.warning("there is no %s split: change dataset.test_fraction or write more triplets", split)
