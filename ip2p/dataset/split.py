"""Decides which accepted pairs the dataset holds, and in which split, file and order.

The hash of the original caption decides the split, for all pairs of a caption and for good. An edited caption may be
the caption of a pair in the other split; then the pair that comes later in the captions' order is left out and counted.
So no caption is in two splits, and captions that are added at the end move no pair.

(A rule that looks at one pair alone would have to drop every pair whose two captions hash to different splits: with a
test fraction of f that leaves a test split of f squared.)
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from ip2p.dataset.duplicates import find_near_duplicates, read_embeddings
from ip2p.records import content_hash, hash_to_unit
from ip2p.store import RunFolder

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
READ_ROWS = 64
"""Pairs that are read at a time."""
_INDEX_COLUMNS = (
    "triplet_id",
    "candidate",
    "original_prompt",
    "edited_prompt",
    "edit_type",
    "source",
    "accepted",
    "picture",
    "shown_prompt",
)


@dataclass(frozen=True, slots=True)
class Place:
    """An accepted pair's place among all pairs, and what decides its place in the dataset."""

    shard: int
    row: int
    captions: tuple[str, ...]
    """Of the original and the edited image, which must lie in one split; a real picture's hash comes before them."""
    edit_type: str
    order: str
    lot: float
    """The triplet's number in [0, 1): `train_share` takes those below it."""
    is_shown: bool = False
    """True if a judge wrote the instruction that the pair shows."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A parquet file to write: its name and its rows, in order, as (shard, row)."""

    split: Split
    name: str
    rows: tuple[tuple[int, int], ...]


def index_pairs(shards: Sequence[Path], seed: int) -> list[Place]:
    """Reads the accepted pairs of all shards, in the captions' order, without their images."""
    places = []
    for number, path in enumerate(shards):
        present = [name for name in _INDEX_COLUMNS if name in pq.read_schema(path).names]
        for row, pair in enumerate(pq.read_table(path, columns=present).to_pylist()):
            if pair["accepted"]:
                captions: tuple[str, ...] = pair["original_prompt"], pair["edited_prompt"]
                if pair.get("picture"):
                    captions = pair["picture"], *captions
                if not all(captions):  # imported pairs without captions go by the picture they come from
                    captions = pair["source"], pair["source"]
                order = content_hash("order", seed, pair["triplet_id"], pair["candidate"])
                lot = hash_to_unit("share", pair["triplet_id"])
                is_shown = bool(pair.get("shown_prompt"))
                places.append(Place(number, row, captions, pair["edit_type"], order, lot, is_shown))
    return places


def pair_shards(out: Path) -> list[Path]:
    """Returns a run's shards of pairs. ValueError if it has none."""
    if not (shards := RunFolder(out).shards("pairs")):
        raise ValueError(f"{out} has no pairs. Run `ip2p dataset` into that folder first.")
    return shards


def split_places(places: Sequence[Place], test_fraction: float) -> list[tuple[Place, Split | None]]:
    """Returns each pair with its split; None if one of its captions is in the other one."""
    return list(zip(places, split_pairs((place.captions for place in places), test_fraction), strict=True))


def read_rows(path: Path, rows: Container[int], columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields some rows of a shard with their numbers, without reading it whole."""
    first = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=READ_ROWS, columns=list(columns)):
            yield from ((row, pair) for row, pair in enumerate(batch.to_pylist(), start=first) if row in rows)
            first += batch.num_rows


def drop_near_duplicates(places: list[Place], shards: Sequence[Path], limit: float | None) -> list[Place]:
    """Drops near-duplicates of earlier pairs, if there is a limit; pairs added at the end change none before them."""
    if limit is None:
        return places
    embeddings = read_embeddings(shards, [(place.shard, place.row) for place in places])
    repeats = find_near_duplicates(embeddings, limit)
    return [place for place, is_repeat in zip(places, repeats, strict=True) if not is_repeat]


def normalise(caption: str) -> str:
    """Removes what does not tell captions apart: case, spacing and final punctuation."""
    return " ".join(caption.split()).strip(" .!?").lower()


def side_of(original_prompt: str, test_fraction: float) -> Split:
    """Returns the split of every pair with this original caption, a pure function of it."""
    return "test" if hash_to_unit("split", normalise(original_prompt)) < test_fraction else "train"


def split_pairs(captions: Iterable[tuple[str, ...]], test_fraction: float) -> list[Split | None]:
    """Returns the split of each pair by the first of its captions; None if one of them is in the other split."""
    owner: dict[str, Split] = {}
    splits: list[Split | None] = []
    for texts_of_pair in captions:
        side = side_of(texts_of_pair[0], test_fraction)
        texts = [normalise(text) for text in texts_of_pair]
        clean = all(owner.get(text, side) == side for text in texts)
        if clean:
            owner.update(dict.fromkeys(texts, side))
        splits.append(side if clean else None)
    return splits


def plan_files(pairs: Sequence[tuple[Place, Split | None]], rows_per_shard: int) -> list[OutputFile]:
    """Plans the files of each split; rows are ordered by a hash, so every stretch mixes captions and edit types."""
    outputs = []
    for split in SPLITS:
        ordered = sorted((place for place, side in pairs if side == split), key=lambda place: place.order)
        rows = tuple((place.shard, place.row) for place in ordered)
        num_files = math.ceil(len(rows) / rows_per_shard)
        for number in range(num_files):
            name = f"{split}-{number:05d}-of-{num_files:05d}.parquet"
            outputs.append(OutputFile(split, name, rows[number * rows_per_shard : (number + 1) * rows_per_shard]))
    return outputs
