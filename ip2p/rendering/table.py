"""The two parquet files of a shard: the table of all its candidates, and the pairs whose images are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p.records import SPEC_COLUMNS, ScoredCandidate, as_row, from_row
from ip2p.rendering.needed import Key, key_of

EncodedPair = tuple[bytes, bytes]
"""The original's and the edited image's file contents."""

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [
        *(
            (name, pa.string())
            for name in ("triplet_id", "original_prompt", "edit_prompt", "edited_prompt", "edit_type", "source")
        ),
        *((name, pa.int64() if name in ("candidate", "seed") else pa.float64()) for name in SPEC_COLUMNS),
        *((name, pa.float64()) for name in ("clip_original", "clip_edited", "clip_direction", "clip_image")),
        ("accepted", pa.bool_()),
        ("reason", pa.string()),
    ]
)
PAIR_SCHEMA = SCHEMA.append(pa.field("original_image", IMAGE_TYPE)).append(pa.field("edited_image", IMAGE_TYPE))


def candidates_table(judged: Sequence[ScoredCandidate]) -> pa.Table:
    """A row per candidate."""
    return pa.Table.from_pylist([as_row(each) for each in judged], schema=SCHEMA)


def pairs_table(kept: Sequence[ScoredCandidate], images: Mapping[Key, EncodedPair], suffix: str) -> pa.Table:
    """A row per pair, with its images; `suffix` is that of their file names."""
    rows = [_pair_row(each, images[key_of(each.candidate)], suffix) for each in kept]
    return pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)


def _pair_row(scored: ScoredCandidate, pair: EncodedPair, suffix: str) -> dict[str, Any]:
    name = f"{scored.candidate.spec.triplet_id}-{scored.candidate.spec.candidate}"
    original, edited = (
        {"bytes": content, "path": f"{name}-{side}.{suffix}"}
        for content, side in zip(pair, ("original", "edited"), strict=True)
    )
    return {**as_row(scored), "original_image": original, "edited_image": edited}


def read_candidates(path: Path) -> dict[Key, ScoredCandidate]:
    """The candidates of a table."""
    scored = [from_row(row) for row in pq.read_table(path).to_pylist()]
    return {key_of(each.candidate): each for each in scored}


def read_images(path: Path) -> dict[Key, EncodedPair]:
    """The images of a table of pairs."""
    columns = ["triplet_id", "candidate", "original_image", "edited_image"]
    return {
        (row["triplet_id"], row["candidate"]): (row["original_image"]["bytes"], row["edited_image"]["bytes"])
        for row in pq.read_table(path, columns=columns).to_pylist()
    }
