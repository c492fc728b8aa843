"""Finds near-duplicates: pairs whose two images are both similar to those of a kept pair, by CLIP's embeddings.

The search is exact. Its cost grows with the square of the pairs: N x N x D multiplications, a block at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ip2p.records import EMBEDDINGS_COLUMN

ROWS, COLUMNS = 512, 2**16
"""Size of the block of similarities that is held at a time."""

Embeddings = np.ndarray
"""(N, 2, D) float16: N pairs of an original and an edited image."""


def find_near_duplicates(embeddings: Embeddings, limit: float) -> np.ndarray:
    """Marks (N,) pairs of which both images have a cosine of at least `limit` to those of an earlier, kept pair."""
    dropped = np.zeros(len(embeddings), dtype=bool)
    for start in range(0, len(embeddings), ROWS):
        block = embeddings[start : start + ROWS].astype(np.float32)
        for begin in range(0, start, COLUMNS):
            earlier = embeddings[begin : min(start, begin + COLUMNS)].astype(np.float32)
            rows, columns = _alike(block, earlier, limit)
            dropped[start + rows[~dropped[begin + columns]]] = True
        for row, column in zip(*_alike(block, block, limit), strict=True):  # in the order of the rows
            if column < row and not dropped[start + column]:
                dropped[start + row] = True
    return dropped


def _alike(block: np.ndarray, others: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the (rows, columns) of pairs whose originals and whose edited images are alike."""
    rows, columns = np.nonzero(block[:, 0] @ others[:, 0].T >= limit)
    edited = np.einsum("nd,nd->n", block[rows, 1], others[columns, 1]) >= limit
    return rows[edited], columns[edited]


def read_embeddings(shards: Sequence[Path], places: Sequence[tuple[int, int]]) -> Embeddings:
    """Reads the embeddings of the pairs at (shard, row), in that order. ValueError if a pair has none."""
    columns = {number: _column(shards[number]) for number in sorted({shard for shard, _ in places})}
    values = [columns[shard][row].as_py() for shard, row in places]
    missing = values.count(None)
    if missing:
        raise ValueError(
            f"{missing} of {len(values)} pairs have no embeddings to find near-duplicates by: they were imported "
            "without scores or rendered by an older version. Import them with --score, or leave "
            "dataset.max_duplicate_similarity out."
        )
    return np.frombuffer(b"".join(values), np.float16).reshape(len(values), 2, -1)


def _column(path: Path) -> pa.ChunkedArray | pa.Array:
    """Reads a shard's embeddings; nulls if an older version wrote no such column."""
    with pq.ParquetFile(path) as file:
        if EMBEDDINGS_COLUMN not in file.schema_arrow.names:
            return pa.nulls(file.metadata.num_rows, pa.binary())
        return file.read(columns=[EMBEDDINGS_COLUMN])[EMBEDDINGS_COLUMN]
