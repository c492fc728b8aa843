"""Measures how clean the rendered pairs are: the share that the domain calls right, accepted and of all candidates.

The domain's verdicts are kept per pairs shard, so that a finished run is not judged again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ip2p import store
from ip2p.config import PipelineConfig, fingerprint
from ip2p.evaluation import metrics
from ip2p.evaluation.cases import Domain, load_domain
from ip2p.evaluation.measures.oracle import OracleMeasure, verdict_of
from ip2p.images import open_pixels
from ip2p.records import EditTriplet

logger = logging.getLogger(__name__)

_TRIPLET = ("original_prompt", "edit_prompt", "edited_prompt", "edit_type", "source")
_SPEC = ("triplet_id", "candidate", "accepted", "reason")
_KEYS = [("triplet_id", pa.string()), ("candidate", pa.int64()), ("edit_type", pa.string()), ("accepted", pa.bool_())]
SCHEMA = pa.schema([*_KEYS, *((column.name, column.type) for column in OracleMeasure.columns)])
_NONE: dict[str, Any] = {"oracle_precision": None, "oracle_precision_all": None}


@store.summarised("dataset", adds=True)
def oracle_precision(config: PipelineConfig) -> dict[str, Any]:
    """Returns the share of right pairs among the accepted, and among all if every candidate's images were kept.

    Both are None if there is no domain or no such pairs.
    """
    domain_name = config.evaluation.domain
    if not domain_name:
        return dict(_NONE)
    domain = load_domain(domain_name)
    run = store.RunFolder(config.out)
    shards = run.shards("pairs")
    folder = run.evaluation / "oracle"
    _judge_shards([shard for shard in shards if not _is_judged(shard, folder, domain_name)], folder, domain_name)
    records = [row for shard in shards for row in pq.read_table(folder / shard.name).to_pylist()]
    return summarise_precision(records, domain.edit_types(), everything=has_rejected(records, run))


def _is_judged(shard: Path, folder: Path, domain_name: str) -> bool:
    return store.finished(folder / shard.name, _verdicts_hash(shard, domain_name)) is not None


def _verdicts_hash(shard: Path, domain_name: str) -> str:
    sidecar = store.read_sidecar(shard)
    return fingerprint(domain_name, sidecar.sha256 if sidecar else "")


def _judge_shards(shards: Sequence[Path], folder: Path, domain_name: str) -> None:
    """Judges one shard here, several in processes, because reading pictures holds the interpreter."""
    judge_shard = partial(_judge_shard, folder=folder, domain_name=domain_name)
    num_workers = min(len(shards), os.cpu_count() or 1)
    with ExitStack() as stack:
        mapped: Iterable[None] = map(judge_shard, shards)
        if num_workers > 1:
            pool = stack.enter_context(ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")))
            mapped = pool.map(judge_shard, shards)
        for _ in tqdm(mapped, desc="judge pairs", unit="shard", total=len(shards), disable=None if shards else True):
            pass


def has_rejected(records: Sequence[metrics.Record], run: store.RunFolder) -> bool:
    """True if the judged pairs are all candidates, and not just the accepted ones."""
    num_candidates = sum(int(pq.read_metadata(path).num_rows) for path in run.shards("candidates"))
    return num_candidates > 0 and len(records) == num_candidates


def summarise_precision(
    records: Sequence[metrics.Record], edit_types: Sequence[str], *, everything: bool
) -> dict[str, Any]:
    """Returns the two shares with their intervals, counts and the same by edit type."""
    accepted = metrics.summarise([record for record in records if record["accepted"]], edit_types)
    figures = _named("oracle_precision", accepted)
    figures |= _named(
        "oracle_precision_all", metrics.summarise(records, edit_types) if everything else metrics.summarise([])
    )
    return figures


def _named(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    by_type = {
        kind: {"n": of_type["n"], "value": of_type["success"], "interval": of_type["success_interval"]}
        for kind, of_type in figures["by_type"].items()
    }
    return {
        name: figures["success"],
        f"{name}_interval": figures["success_interval"],
        f"{name}_n": figures["n"],
        f"{name}_by_type": by_type,
    }


def _judge_shard(shard: Path, folder: Path, domain_name: str) -> None:
    domain = load_domain(domain_name)
    started, rows = time.monotonic(), []
    columns = [*_SPEC, *_TRIPLET, "original_image", "edited_image"]
    for batch in pq.ParquetFile(shard).iter_batches(batch_size=64, columns=columns):
        rows += [_judge_row(row, domain) for row in batch.to_pylist()]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    store.write_shard(
        folder / shard.name, table, fingerprint=_verdicts_hash(shard, domain_name), seconds=time.monotonic() - started
    )


def _judge_row(row: dict[str, Any], domain: Domain) -> dict[str, Any]:
    triplet = EditTriplet(**{name: row[name] or "" for name in _TRIPLET})
    images = (open_pixels(row[name]["bytes"]) for name in ("original_image", "edited_image"))
    return {name: row[name] for name, _ in _KEYS} | verdict_of(domain.judge_pair(triplet, *images))
