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

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ip2p import store
from ip2p.config import PipelineConfig, fingerprint
from ip2p.evaluation.cases import load_domain
from ip2p.evaluation.measures.oracle import OracleMeasure, verdict_of
from ip2p.evaluation.metrics import Figures, Record, select, summarise
from ip2p.images import open_pixels
from ip2p.records import TEXT_COLUMNS, EditTriplet
from ip2p.sources.columns import SIDES

logger = logging.getLogger(__name__)

_KEYS = [("triplet_id", pa.string()), ("candidate", pa.int64()), ("edit_type", pa.string()), ("accepted", pa.bool_())]
SCHEMA = pa.schema([*_KEYS, *((column.name, column.type) for column in OracleMeasure.columns)])


@store.summarised("dataset", adds=True)
def oracle_precision(config: PipelineConfig) -> Figures:
    """Returns the share of right pairs among the accepted, and among all if every candidate's images were kept.

    Each has its interval, its count and the same by edit type. Both are None if there is no domain or no such pairs.
    """
    domain_name = config.evaluation.domain
    if not domain_name:
        return {"oracle_precision": None, "oracle_precision_all": None}
    run = store.RunFolder(config.out)
    folder, shards = run.evaluation / "oracle", run.shards("pairs")
    _judge_shards(shards, folder, domain_name)
    records = [row for shard in shards for row in pq.read_table(folder / shard.name).to_pylist()]
    num_candidates = sum(int(pq.read_metadata(path).num_rows) for path in run.shards("candidates"))
    return precision_of(records, num_candidates, load_domain(domain_name).edit_types())


def precision_of(records: Sequence[Record], num_candidates: int, edit_types: Sequence[str]) -> Figures:
    """Sums verdicts up; all candidates count only if every one was judged."""
    groups = {
        "oracle_precision": select(records, accepted=True),
        "oracle_precision_all": records if len(records) == num_candidates else [],
    }
    figures = Figures()
    for name, group in groups.items():
        figures |= as_precision(name, summarise(group, edit_types))
    return figures


def as_precision(name: str, summary: Figures) -> Figures:
    """Names the figures of some pairs as the dataset's summary has them."""
    by_type = {
        kind: {"n": figures["n"], "value": figures["success"], "interval": figures["success_interval"]}
        for kind, figures in summary["by_type"].items()
    }
    return {
        name: summary["success"],
        f"{name}_interval": summary["success_interval"],
        f"{name}_n": summary["n"],
        f"{name}_by_type": by_type,
    }


def _judge_shards(shards: Sequence[Path], folder: Path, domain_name: str) -> None:
    """Judges the missing shards: one in this process, several in a pool, because decoding pictures holds the GIL."""
    missing = [
        shard for shard in shards if store.finished(folder / shard.name, _verdicts_hash(shard, domain_name)) is None
    ]
    judge_shard = partial(_judge_shard, folder=folder, domain_name=domain_name)
    num_workers = min(len(missing), os.cpu_count() or 1)
    with ExitStack() as stack:
        judged: Iterable[None] = map(judge_shard, missing)
        if num_workers > 1:
            pool = stack.enter_context(ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")))
            judged = pool.map(judge_shard, missing)
        for _ in tqdm(judged, desc="judge pairs", unit="shard", total=len(missing), disable=None if missing else True):
            pass


def _verdicts_hash(shard: Path, domain_name: str) -> str:
    sidecar = store.read_sidecar(shard)
    return fingerprint(domain_name, sidecar.sha256 if sidecar else "")


def _judge_shard(shard: Path, folder: Path, domain_name: str) -> None:
    domain = load_domain(domain_name)
    started, rows = time.monotonic(), []
    columns = dict.fromkeys((*(name for name, _ in _KEYS), *TEXT_COLUMNS, *SIDES))
    for batch in pq.ParquetFile(shard).iter_batches(batch_size=64, columns=list(columns)):
        for row in batch.to_pylist():
            triplet = EditTriplet(**{name: row.get(name) or "" for name in TEXT_COLUMNS})
            judgement = domain.judge_pair(triplet, *(open_pixels(row[name]["bytes"]) for name in SIDES))
            rows.append({name: row[name] for name, _ in _KEYS} | verdict_of(judgement))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    verdicts_hash, seconds = _verdicts_hash(shard, domain_name), time.monotonic() - started
    store.write_shard(folder / shard.name, table, fingerprint=verdicts_hash, seconds=seconds)
