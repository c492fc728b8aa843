"""The two parquet files of a shard: the table of all its candidates, and the pairs whose images are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ip2p.images import format_of
from ip2p.records import DRAWN_COLUMNS, EMBEDDINGS_COLUMN, SCORE_COLUMNS, ScoredCandidate, as_row, from_row
from ip2p.rendering.candidates import Key


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Two images as they are stored."""

    original: bytes
    edited: bytes
    embeddings: bytes | None = None
    """`PairScores.embeddings`, where the pair was scored."""


IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [
        *(
            (name, pa.string())
            for name in ("triplet_id", "original_prompt", "edit_prompt", "edited_prompt", "edit_type", "source")
        ),
        *((name, pa.int64()) for name in ("candidate", "seed")),
        *((name, pa.float64()) for name in (*DRAWN_COLUMNS, *SCORE_COLUMNS)),
        ("first_look", pa.bool_()),
        ("accepted", pa.bool_()),
        ("reason", pa.string()),
    ]
)
SIDES = ("original_image", "edited_image")
STORED = (*SIDES, EMBEDDINGS_COLUMN)
"""What pairs have and candidates have not."""
PAIR_SCHEMA = pa.schema([*SCHEMA, *(pa.field(side, IMAGE_TYPE) for side in SIDES), (EMBEDDINGS_COLUMN, pa.binary())])
IMAGES_SCHEMA = pa.schema([PAIR_SCHEMA.field(name) for name in ("triplet_id", "candidate", *STORED)])


def candidates_table(scored: Iterable[ScoredCandidate]) -> pa.Table:
    """A row per candidate."""
    return pa.Table.from_pylist([as_row(each) for each in scored], schema=SCHEMA)


def read_rows(table: pa.Table) -> list[ScoredCandidate]:
    """The rows of a table of candidates."""
    return [from_row(row) for row in table.select(SCHEMA.names).to_pylist()]


def in_order_of(triplet_ids: Sequence[str], table: pa.Table) -> pa.Table:
    """The rows by their triplet's place and then by their number."""
    place = pc.index_in(table["triplet_id"], value_set=pa.array(triplet_ids, pa.string()))
    keyed = pa.table({"place": place, "candidate": table["candidate"]})
    return table.take(pc.sort_indices(keyed, sort_keys=[("place", "ascending"), ("candidate", "ascending")]))


def images_table(images: Mapping[Key, EncodedPair]) -> pa.Table:
    """A row per pair of images."""
    rows = [_images_row(triplet_id, number, pair) for (triplet_id, number), pair in images.items()]
    return pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA)


def _images_row(triplet_id: str, number: int, pair: EncodedPair) -> dict[str, Any]:
    files = {
        side: {"bytes": content, "path": f"{triplet_id}-{number}-{side.removesuffix('_image')}.{format_of(content)}"}
        for side, content in zip(SIDES, (pair.original, pair.edited), strict=True)
    }
    return {"triplet_id": triplet_id, "candidate": number, **files, EMBEDDINGS_COLUMN: pair.embeddings}


def lacks_images(wanted: pa.Table, images: pa.Table) -> pa.Table:
    """The rows of `wanted` that have none."""
    return wanted.filter(pc.is_null(_places(wanted, images)))


def with_images(wanted: pa.Table, images: pa.Table) -> pa.Table:
    """The rows of `wanted`, each with its images."""
    found = images.select(list(STORED)).take(_places(wanted, images))
    for name in STORED:
        wanted = wanted.append_column(PAIR_SCHEMA.field(name), found[name])
    return wanted


def _places(wanted: pa.Table, images: pa.Table) -> pa.Array:
    """Of each wanted row its place among the images; null where it has none."""
    return pc.index_in(_names(wanted), value_set=_names(images).combine_chunks())


def _names(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["triplet_id"], pc.cast(table["candidate"], pa.string()), "-")
