"""Writes the accepted pairs of a run, shuffled by hash, as parquet files that appear all at once.

Two passes, each over one file at a time: the first appends every row to the spill file of its output, the second puts
each spill file in order and writes it. Everything lies in a hidden folder until it is renamed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from ip2p import store
from ip2p.config import PipelineConfig, fingerprint
from ip2p.dataset.card import Counts, describe_rejections, write_card
from ip2p.dataset.further import FOLDER, Further, further_columns
from ip2p.dataset.schema import CHUNKING, ROW_GROUP_BYTES, WRITTEN, open_writer, schema_of
from ip2p.dataset.split import (
    READ_ROWS,
    SPLITS,
    OutputFile,
    Place,
    Split,
    drop_near_duplicates,
    index_pairs,
    plan_files,
    side_of,
    split_places,
)

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LAYOUT = 1
"""Changes when the same pairs would be written differently."""


@store.summarised("dataset")
def write_dataset(config: PipelineConfig) -> Counts:
    """Writes `dataset/` unless it is done; returns counts. ValueError with the way out if no pair was accepted."""
    started, settings = time.monotonic(), config.dataset
    folder = store.RunFolder(config.out)
    _remove_leftovers(config.out)
    made_from = _fingerprint(config, folder)
    done = _finished(folder.dataset, made_from)
    if done is not None:
        logger.info("the dataset is done: %d pairs in %d files", done["pairs"], done["files"])
        return done
    shards = folder.shards("pairs")
    accepted = index_pairs(shards, settings.seed)
    if not accepted:
        raise ValueError(describe_rejections(config))
    unlike = drop_near_duplicates(accepted, shards, settings.max_duplicate_similarity)
    pairs, share = split_places(unlike, settings.test_fraction), settings.train_share
    pairs = [(place, split) for place, split in pairs if split != "train" or place.lot < share]
    if share < 1 and not any(split == "train" for _, split in pairs):
        raise ValueError(
            f"dataset.train_share {share:g} leaves none of {len(unlike)} pairs to train on. Take a larger share."
        )
    outputs = plan_files(pairs, settings.rows_per_shard)
    partial = config.out / ".dataset.partial"
    is_shown = settings.edit_prompt == "shown"
    files = _write_files(partial, shards, outputs, has_written=is_shown)
    counts = {
        "accepted": len(accepted),
        "near_duplicate": len(accepted) - len(unlike),
        "beyond_share": len(unlike) - len(pairs),
        **_count(pairs, settings.test_fraction),
        "files": len(outputs),
    }
    if is_shown:
        counts["kept_written"] = sum(1 for place, split in pairs if split and not place.is_shown)
    write_card(config, partial, counts)
    counts["seconds"] = round(time.monotonic() - started, 3)
    store.write_json(partial / MANIFEST, {"fingerprint": made_from, "counts": counts, "files": files})
    _swap(partial, folder.dataset)
    _log(counts)
    return counts


def dataset_state(config: PipelineConfig) -> store.State:
    """Returns the state of `dataset/`, by the shards that are there, without reading its files."""
    folder = store.RunFolder(config.out)
    manifest = store.read_json_or_empty(folder.dataset / MANIFEST)
    if not manifest:
        return "missing"
    return "done" if manifest.get("fingerprint") == _fingerprint(config, folder) else "outdated"


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
    if further := folder.shards(FOLDER):
        made_of.append([sidecar.sha256 for path in further if (sidecar := store.read_sidecar(path))])
    return fingerprint("dataset", LAYOUT, config.dataset, config.rendering, config.filtering, made_of)


def _finished(dataset: Path, expected: str) -> Counts | None:
    """Returns the counts of a dataset that has the expected fingerprint and whose files are whole."""
    try:
        manifest = store.read_json(dataset / MANIFEST)
        whole = manifest["fingerprint"] == expected and all(
            store.sha256_of(dataset / file["path"]) == file["sha256"] for file in manifest["files"]
        )
        return dict(manifest["counts"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_files(
    folder: Path, shards: Sequence[Path], outputs: Sequence[OutputFile], *, has_written: bool
) -> list[dict[str, object]]:
    """Writes the planned files below `folder`; returns their entries in the manifest."""
    (folder / "data").mkdir(parents=True)
    spills = folder / ".spill"
    spills.mkdir()
    further = further_columns(path for path in map(_further_of, shards) if path.exists())
    schema = schema_of(shards, further, has_written=has_written)
    _spill(shards, outputs, spills, schema, further)
    written = []
    for output in tqdm(outputs, desc="dataset", unit="file", disable=None, leave=False):
        path = folder / "data" / output.name
        digest = _write_file(path, output, spills / output.name, schema)
        (spills / output.name).unlink()
        size = path.stat().st_size
        written.append({"path": f"data/{output.name}", "rows": len(output.rows), "bytes": size, "sha256": digest})
    spills.rmdir()
    return written


def _further_of(shard: Path) -> Path:
    """Returns the shard of further pictures that belongs to one of pairs."""
    return shard.parent.with_name(FOLDER) / shard.name


def _spill(
    shards: Sequence[Path], outputs: Sequence[OutputFile], spills: Path, schema: pa.Schema, further: Sequence[str]
) -> None:
    """Appends every chosen row, with its place in the output, to the spill file of its output."""
    targets: dict[int, dict[int, tuple[str, int]]] = defaultdict(dict)
    for output in outputs:
        for position, (shard, row) in enumerate(output.rows):
            targets[shard][row] = output.name, position
    for shard, rows in tqdm(sorted(targets.items()), desc="gather", unit="shard", disable=None, leave=False):
        for first, batch in _batches(shards[shard], schema, further):
            by_output: dict[str, list[tuple[int, int]]] = defaultdict(list)
            for offset in range(batch.num_rows):
                if first + offset in rows:
                    name, position = rows[first + offset]
                    by_output[name].append((offset, position))
            for name, offsets_and_positions in by_output.items():
                _append(spills / name, batch, offsets_and_positions)


def _batches(path: Path, schema: pa.Schema, further: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields the rows with the columns of the dataset; those that a shard lacks are null."""
    pictures, first = Further(_further_of(path), further), 0
    plain = pa.schema([field for field in schema if field.name not in further])
    with pq.ParquetFile(path) as file:
        present = [name for name in plain.names if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=READ_ROWS, columns=present):
            columns = [
                batch[field.name].cast(field.type) if field.name in present else pa.nulls(len(batch), field.type)
                for field in plain
            ]
            yield first, pictures.add_to(_with_shown(pa.RecordBatch.from_arrays(columns, schema=plain)))
            first += batch.num_rows


def _with_shown(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Puts the instruction that a pair shows in place of the written one, if the latter has a column of its own."""
    if WRITTEN not in batch.schema.names:
        return batch
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    written = columns[WRITTEN] = columns["edit_prompt"]
    if "shown_prompt" in columns:
        shown = pc.fill_null(columns["shown_prompt"], "")
        columns["edit_prompt"] = pc.if_else(pc.equal(shown, ""), written, shown)
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)


def _append(path: Path, batch: pa.RecordBatch, offsets_and_positions: Sequence[tuple[int, int]]) -> None:
    offsets, positions = zip(*offsets_and_positions, strict=True)
    rows = batch.take(pa.array(offsets)).append_column("position", pa.array(positions, pa.int64()))
    with path.open("ab") as file, pa.ipc.new_stream(file, rows.schema) as stream:
        stream.write_batch(rows)


def _read_spill(path: Path, num_rows: int) -> list[pa.RecordBatch]:
    """Reads the rows of a spill file, in order, as batches of one row."""
    ordered: list[pa.RecordBatch | None] = [None] * num_rows
    with pa.memory_map(str(path)) as file:
        while file.tell() < file.size():
            for batch in pa.ipc.open_stream(file):
                for offset, position in enumerate(batch.column("position").to_pylist()):
                    ordered[position] = batch.drop_columns(["position"]).slice(offset, 1)
    return [row for row in ordered if row is not None]


def _write_file(path: Path, output: OutputFile, spill: Path, schema: pa.Schema) -> str:
    """Writes one parquet file, flushed to disk; returns its SHA-256."""
    with open_writer(path, schema) as writer:
        writer.add_key_value_metadata({"content_defined_chunking": json.dumps(CHUNKING)})
        for group in _row_groups(_read_spill(spill, len(output.rows))):
            writer.write_table(pa.Table.from_batches(group).combine_chunks().cast(schema), row_group_size=len(group))
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
    store.replace_folder(dataset, partial)


def _count(pairs: Sequence[tuple[Place, Split | None]], test_fraction: float) -> Counts:
    by_type = Counter(place.edit_type for place, split in pairs if split)
    rows = Counter(split for _, split in pairs if split)
    left_out = Counter(side_of(place.captions[0], test_fraction) for place, split in pairs if split is None)
    return {
        "pairs": rows.total(),
        **{split: rows[split] for split in SPLITS},
        "split_conflict": left_out.total(),
        "split_conflict_test": left_out["test"],
        "edit_types": dict(sorted(by_type.items())),
    }


def _log(counts: Counts) -> None:
    logger.info(
        "dataset: %d pairs (train %d, test %d) in %d files; left out: %d whose caption is in the other split, %d alike",
        *(counts[name] for name in ("pairs", *SPLITS, "files", "split_conflict", "near_duplicate")),
    )
    if counts.get("kept_written"):
        logger.info("%d of the pairs keep the written instruction: the judge names none", counts["kept_written"])
    for split in SPLITS:
        if not counts[split]:
            logger.warning("there is no %s split: change dataset.test_fraction or write more triplets", split)
