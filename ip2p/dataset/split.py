"""Decides which accepted pairs the dataset holds, and in which split, file and order.

The hash of the original caption decides the split, for all pairs of a caption and for good. An edited caption may be
the caption of a pair in the other split; then the pair that comes later in the captions' order is left out and counted.
So no caption is in two splits, and captions that are added at the end move no pair.

(A rule that looks at one pair alone would have to drop every pair whose two captions hash to different splits: with a
test fraction of f that leaves a test split of f squared.)
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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
    """A parquet file to write: its name, and how many rows it holds."""

    split: Split
    name: str
    num_rows: int


def index_pairs(shards: Sequence[Path], seed: int) -> Iterator[Place]:
    """Yields the accepted pairs of all shards, in the captions' order, without their images."""
    for number, path in enumerate(shards):
        present = [name for name in _INDEX_COLUMNS if name in pq.read_schema(path).names]
        table = pq.read_table(path, columns=present)
        rows = accepted_rows(table)
        for row, pair in zip(rows.tolist(), table.take(pa.array(rows)).to_pylist(), strict=True):
            yield _place_of(number, row, pair, seed)


def accepted_rows(table: pa.Table) -> np.ndarray:
    """Returns the places of the accepted rows of a table of pairs."""
    return np.flatnonzero(pc.fill_null(table["accepted"], False).to_numpy())


def _place_of(shard: int, row: int, pair: Mapping[str, Any], seed: int) -> Place:
    captions: tuple[str, ...] = pair["original_prompt"], pair["edited_prompt"]
    if pair.get("picture"):
        captions = pair["picture"], *captions
    if not all(captions):  # imported pairs without captions go by the picture they come from
        captions = pair["source"], pair["source"]
    order = content_hash("order", seed, pair["triplet_id"], pair["candidate"])
    lot = hash_to_unit("share", pair["triplet_id"])
    return Place(shard, row, captions, pair["edit_type"], order, lot, bool(pair.get("shown_prompt")))


def pair_shards(out: Path) -> list[Path]:
    """Returns a run's shards of pairs. ValueError if it has none."""
    if not (shards := RunFolder(out).shards("pairs")):
        raise ValueError(f"{out} has no pairs. Run `ip2p dataset` into that folder first.")
    return shards


def split_places(places: Iterable[Place], test_fraction: float) -> Iterator[tuple[Place, Split | None]]:
    """Yields each pair with its split; None if one of its captions is in the other one."""
    places, others = tee(places)
    return zip(places, split_pairs((place.captions for place in others), test_fraction), strict=True)


def read_rows(path: Path, rows: Container[int], columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields some rows of a shard with their numbers, without reading it whole."""
    first = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=READ_ROWS, columns=list(columns)):
            yield from ((row, pair) for row, pair in enumerate(batch.to_pylist(), start=first) if row in rows)
            first += batch.num_rows


def normalise(caption: str) -> str:
    """Removes what does not tell captions apart: case, spacing and final punctuation."""
    return " ".join(caption.split()).strip(" .!?").lower()


def side_of(original_prompt: str, test_fraction: float) -> Split:
    """Returns the split of every pair with this original caption, a pure function of it."""
    return "test" if hash_to_unit("split", normalise(original_prompt)) < test_fraction else "train"


def split_pairs(captions: Iterable[tuple[str, ...]], test_fraction: float) -> Iterator[Split | None]:
    """Yields the split of each pair by the first of its captions; None if one of them is in the other split."""
    owner: dict[str, Split] = {}
    for texts_of_pair in captions:
        side = side_of(texts_of_pair[0], test_fraction)
        texts = [normalise(text) for text in texts_of_pair]
        is_clean = all(owner.get(text, side) == side for text in texts)
        if is_clean:
            owner.update(dict.fromkeys(texts, side))
        yield side if is_clean else None


PLAN_SCHEMA = pa.schema([("shard", pa.int32()), ("row", pa.int32()), ("file", pa.int32()), ("position", pa.int32())])
"""Which row of which shard stands where in which file."""


class Chosen:
    """The pairs of a dataset in a few numbers each: a run may have millions."""

    def __init__(self) -> None:
        self._shards, self._rows, self._sides = array("i"), array("i"), array("b")
        self._orders = array("Q")

    def add(self, place: Place, split: Split) -> None:
        """Adds a pair."""
        self._shards.append(place.shard)
        self._rows.append(place.row)
        self._sides.append(SPLITS.index(split))
        self._orders.append(int(place.order, 16))

    def plan_files(self, rows_per_shard: int) -> tuple[list[OutputFile], pa.Table]:
        """Plans the files of each split, and returns them with the `PLAN_SCHEMA` of their rows, by shard and row.

        Rows are ordered by a hash, so every stretch mixes captions and edit types.
        """
        sides = np.asarray(self._sides)
        order = np.lexsort((np.asarray(self._orders), sides))
        files: list[OutputFile] = []
        file, position = np.empty(len(order), np.int32), np.empty(len(order), np.int32)
        end = 0
        for number, split in enumerate(SPLITS):
            start, end = end, end + int((sides == number).sum())
            places, num_files = np.arange(end - start), math.ceil((end - start) / rows_per_shard)
            file[order[start:end]] = len(files) + places // rows_per_shard
            position[order[start:end]] = places % rows_per_shard
            for each in range(num_files):
                num_rows = min(rows_per_shard, end - start - each * rows_per_shard)
                files.append(OutputFile(split, f"{split}-{each:05d}-of-{num_files:05d}.parquet", num_rows))
        columns = np.asarray(self._shards), np.asarray(self._rows), file, position
        return files, pa.table([pa.array(each, pa.int32()) for each in columns], schema=PLAN_SCHEMA)
