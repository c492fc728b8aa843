"""Writes preferences of a run: edits that its filter accepted against edits of the same triplet that it rejected.

The columns are those of Pick-a-Pic, which Diffusion-DPO trainers read: `caption`, `jpg_0`, `jpg_1`, `label_0`. What is
compared must be edits of one original. Candidates that prompt-to-prompt renders have an original each, so that they are
compared only on request, with both originals in the row. A candidate counts as rejected if a score is out of its
bounds, not if its triplet had enough pairs. Every picture is in at most one row.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ip2p import __version__, store
from ip2p.config import PipelineConfig
from ip2p.dataset.exporting import NOTE, new_folder
from ip2p.dataset.split import Split, index_pairs, pair_shards, split_places
from ip2p.images import IMAGE_TYPE
from ip2p.records import hash_to_unit
from ip2p.scoring import BOUNDS

TEXTS = ("original_prompt", "edited_prompt", "edit_type", "triplet_id")
_READ = (*TEXTS, "edit_prompt", "candidate", "accepted", "reason", "original_image", "edited_image")
_STRINGS = ("caption", "image_0_uid", "image_1_uid", "best_image_uid", "reason", *TEXTS)
Row = dict[str, Any]
Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class Preference:
    """Two candidates of one triplet, as rows of the table of pairs."""

    winner: Row
    loser: Row

    def as_row(self, *, own_originals: bool) -> Row:
        """Returns the row to write; a hash decides which side comes first."""
        uids = [f"{each['triplet_id']}-{each['candidate']}" for each in (self.winner, self.loser)]
        sides = [self.winner, self.loser]
        is_first = hash_to_unit("preference", *uids) < 0.5
        order = (0, 1) if is_first else (1, 0)
        originals = {f"original_image_{place}": sides[side]["original_image"] for place, side in enumerate(order)}
        return {
            "caption": self.winner["edit_prompt"],
            **{f"jpg_{place}": sides[side]["edited_image"]["bytes"] for place, side in enumerate(order)},
            **{f"label_{place}": float(side == 0) for place, side in enumerate(order)},
            **{f"image_{place}_uid": uids[side] for place, side in enumerate(order)},
            "best_image_uid": uids[0],
            "are_different": True,
            "has_label": True,
            **(originals if own_originals else {"original_image": self.winner["original_image"]}),
            "reason": self.loser["reason"],
            **{name: self.winner[name] for name in TEXTS},
        }


def schema_of(*, own_originals: bool) -> pa.Schema:
    """Returns the schema of the parquet files."""
    originals = ("original_image_0", "original_image_1") if own_originals else ("original_image",)
    return pa.schema(
        [
            *((name, pa.string()) for name in _STRINGS),
            *((name, pa.binary()) for name in ("jpg_0", "jpg_1")),
            *((name, pa.float64()) for name in ("label_0", "label_1")),
            *((name, pa.bool_()) for name in ("are_different", "has_label")),
            *((name, IMAGE_TYPE) for name in originals),
        ]
    )


def write_preferences(config: PipelineConfig, out: Path, *, own_originals: bool = False) -> Counts:
    """Writes the preferences of a run, a parquet file per split and shard; returns counts.

    ValueError with the way out if there are none, or if the folder holds anything but an earlier export.
    """
    shards, settings = pair_shards(config.out), config.dataset
    placed = split_places(index_pairs(shards, settings.seed), settings.test_fraction)
    by_place = {(place.shard, place.row): split for place, split in placed}
    schema, counts, reasons = schema_of(own_originals=own_originals), Counter[str](), Counter[str]()
    with new_folder(out) as folder:
        (folder / "data").mkdir()
        for number, path in enumerate(tqdm(shards, desc="preferences", unit="shard", disable=None)):
            rows = defaultdict[Split, list[Row]](list)
            for split, preference in _compare(path, number, by_place, reasons, own_originals=own_originals):
                rows[split].append(preference.as_row(own_originals=own_originals))
            for split, chosen in rows.items():
                table = pa.Table.from_pylist(chosen, schema=schema)
                pq.write_table(table, folder / "data" / f"{split}-{number:05d}.parquet")
                counts[split] += len(chosen)
        if not counts:
            raise ValueError(_explain(config, reasons))
        note = {"layout": "preferences", "ip2p": __version__, "splits": dict(counts)}
        store.write_json(folder / NOTE, note)
    return dict(counts)


def _compare(
    path: Path,
    shard: int,
    splits: Mapping[tuple[int, int], Split | None],
    outcomes: Counter[str],
    *,
    own_originals: bool,
) -> Iterator[tuple[Split, Preference]]:
    """Yields the preferences of a shard, which holds all candidates of its triplets, with their splits."""
    groups = defaultdict[tuple[str, bytes], tuple[list[tuple[Split, Row]], list[Row]]](lambda: ([], []))
    for place, row in enumerate(pq.read_table(path, columns=list(_READ)).to_pylist()):
        original = b"" if own_originals else row["original_image"]["bytes"]
        winners, losers = groups[row["triplet_id"], original]
        if row["accepted"] and (split := splits[shard, place]):
            winners.append((split, row))
        elif row["reason"] in BOUNDS:
            losers.append(row)
            outcomes["rejected"] += 1
    for winners, losers in groups.values():
        yield from ((split, Preference(winner, loser)) for (split, winner), loser in zip(winners, losers, strict=False))


def _explain(config: PipelineConfig, outcomes: Mapping[str, int]) -> str:
    """Says in one line why a run has no preference, and what to do."""
    if outcomes["rejected"]:
        return (
            f"{config.out} has no accepted and rejected edit of one original. Candidates that were rendered together "
            "with their originals can be compared with --own-originals."
        )
    return (
        f"{config.out} holds no images of rejected candidates. To render them: ip2p dataset --config "
        f"{config.out / 'config.json'} --rendering.keep-rejected-images"
    )
