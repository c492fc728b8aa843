"""The two parquet files of a shard: the table of all its candidates, and the pairs whose images are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ip2p.images import IMAGE_TYPE, Array, format_of
from ip2p.records import (
    ANSWER_COLUMNS,
    DRAWN_COLUMNS,
    EMBEDDINGS_COLUMN,
    LATER_COLUMNS,
    SPEC_COLUMNS,
    TEXT_COLUMNS,
    Candidate,
    EditTriplet,
    PairScores,
    RenderSpec,
    ScoredCandidate,
    Verdict,
)
from ip2p.rendering.candidates import Key
from ip2p.scoring import LATER_SCORES, SCORE_COLUMNS
from ip2p.sources.columns import SIDES

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("triplet_id", *TEXT_COLUMNS)),
        *((name, pa.int64()) for name in ("candidate", "seed")),
        *((name, pa.float64()) for name in (*DRAWN_COLUMNS, *SCORE_COLUMNS)),
        *((name, pa.string()) for name in ANSWER_COLUMNS),
        ("first_look", pa.bool_()),
        ("failure", pa.string()),
        ("accepted", pa.bool_()),
        ("reason", pa.string()),
    ]
)
OPTIONAL_COLUMNS = (*LATER_COLUMNS, *LATER_SCORES)
"""Columns that a file lacks if none of its rows fills them."""
STORED = (*SIDES, EMBEDDINGS_COLUMN)
"""Columns of pairs that candidates do not have."""
PAIR_SCHEMA = pa.schema([*SCHEMA, *(pa.field(side, IMAGE_TYPE) for side in SIDES), (EMBEDDINGS_COLUMN, pa.binary())])
IMAGES_SCHEMA = pa.schema([PAIR_SCHEMA.field(name) for name in ("triplet_id", "candidate", *STORED)])


@dataclass(frozen=True, slots=True)
class DrawnPair:
    """Two images before they are stored."""

    original: Array | bytes
    """Pixels, or the file of a picture that is stored as it is."""
    edited: Array


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Two images as they are stored."""

    original: bytes
    edited: bytes
    embeddings: bytes | None = None
    """The value of `EMBEDDINGS_COLUMN`, if the pair was scored."""


def as_row(scored: ScoredCandidate) -> dict[str, Any]:
    """Flattens a scored candidate into the columns of the candidates table."""
    triplet, spec, scores = scored.candidate.triplet, scored.candidate.spec, scored.scores
    return {
        "triplet_id": spec.triplet_id,
        **{name: getattr(triplet, name) for name in TEXT_COLUMNS},
        **{name: getattr(spec, name) for name in SPEC_COLUMNS},
        **{column: scores.get(name) for column, name in SCORE_COLUMNS.items()},
        **{name: getattr(scores, name) for name in ANSWER_COLUMNS},
        "first_look": scores.first_look,
        "failure": scores.failure,
        "accepted": scored.verdict.accepted,
        "reason": scored.verdict.reason,
    }


def from_row(row: Mapping[str, Any]) -> ScoredCandidate:
    """Reads a row of the candidates table back; the inverse of `as_row`. Later columns may be missing."""
    row = {**dict.fromkeys(OPTIONAL_COLUMNS), **row}
    triplet = EditTriplet(**{name: row[name] or "" for name in TEXT_COLUMNS})
    spec = RenderSpec(triplet_id=row["triplet_id"], **{name: row[name] for name in SPEC_COLUMNS})
    values = ((name, row[column]) for column, name in SCORE_COLUMNS.items())
    scores = PairScores.from_values(values, first_look=bool(row["first_look"]), failure=row["failure"] or "")
    answers: dict[str, Any] = {name: row[name] or "" for name in ANSWER_COLUMNS}
    scores = replace(scores, **answers)
    return ScoredCandidate(
        candidate=Candidate(triplet=triplet, spec=spec), scores=scores, verdict=Verdict(reason=row["reason"])
    )


def candidates_table(scored: Iterable[ScoredCandidate]) -> pa.Table:
    """Builds a table with a row per candidate."""
    return pa.Table.from_pylist([as_row(candidate) for candidate in scored], schema=SCHEMA)


def read_rows(table: pa.Table) -> list[ScoredCandidate]:
    """Reads the rows of a table of candidates."""
    return [from_row(row) for row in table.select(SCHEMA.names).to_pylist()]


def in_order_of(triplet_ids: Sequence[str], table: pa.Table) -> pa.Table:
    """Sorts rows by their triplet's place, then by their number."""
    place = pc.index_in(table["triplet_id"], value_set=pa.array(triplet_ids, pa.string()))
    keyed = pa.table({"place": place, "candidate": table["candidate"]})
    return table.take(pc.sort_indices(keyed, sort_keys=[("place", "ascending"), ("candidate", "ascending")]))


def with_new_scores(table: pa.Table, scored: Sequence[ScoredCandidate]) -> pa.Table:
    """Replaces the rows of candidates that were scored again; keeps the order."""
    new = candidates_table(scored)
    others = table.filter(pc.invert(pc.is_in(_names(table), value_set=_names(new).combine_chunks())))
    return in_order_of(table["triplet_id"].unique().to_pylist(), pa.concat_tables([others, new]))


def images_table(images: Mapping[Key, EncodedPair]) -> pa.Table:
    """Builds a table with a row per pair of images."""
    rows = []
    for (triplet_id, number), pair in images.items():
        row = {"triplet_id": triplet_id, "candidate": number, EMBEDDINGS_COLUMN: pair.embeddings}
        for side, content in zip(SIDES, (pair.original, pair.edited), strict=True):
            name = f"{triplet_id}-{number}-{side.removesuffix('_image')}.{format_of(content)}"
            row[side] = {"bytes": content, "path": name}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA)


def read_images(images: pa.Table, keys: Set[Key]) -> dict[Key, EncodedPair]:
    """Reads the pairs of images of some candidates."""
    pairs: dict[Key, EncodedPair] = {}
    names = zip(images["triplet_id"].to_pylist(), images["candidate"].to_pylist(), strict=True)
    for place in [place for place, key in enumerate(names) if key in keys]:
        (row,) = images.slice(place, 1).to_pylist()
        original, edited = (row[side]["bytes"] for side in SIDES)
        pairs[row["triplet_id"], row["candidate"]] = EncodedPair(original, edited, row[EMBEDDINGS_COLUMN])
    return pairs


def lacks_images(table: pa.Table, images: pa.Table) -> pa.Table:
    """Returns the rows of a table of candidates that have no images."""
    return table.filter(pc.is_null(_places(table, images)))


def with_images(table: pa.Table, images: pa.Table) -> pa.Table:
    """Adds its images to each row of a table of candidates."""
    stored = images.select(list(STORED)).take(_places(table, images))
    for name in STORED:
        table = table.append_column(PAIR_SCHEMA.field(name), stored[name])
    return table


def _places(table: pa.Table, images: pa.Table) -> pa.Array:
    """Returns each row's place among the images; null if it has none."""
    return pc.index_in(_names(table), value_set=_names(images).combine_chunks())


def _names(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["triplet_id"], pc.cast(table["candidate"], pa.string()), "-")
