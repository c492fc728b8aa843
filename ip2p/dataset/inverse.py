"""Turns the pairs of a run round: the edited picture is the original, and the original is what the edit leads to.

The captions change sides and the instruction is written anew from them. A caption stays in the split in which the run
has it: a pair whose turning round would put it into the other split is left out, so that both datasets can be trained
on together. `source` names the pair that each comes from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ip2p.config import PipelineConfig
from ip2p.dataset.split import index_pairs, pair_shards, read_rows, side_of, split_places
from ip2p.prompts.wording import Change, Word
from ip2p.sources.pairs import SourceRow

AT_ONCE = 256
"""Pairs that are put into words at a time."""
Row = dict[str, Any]
_COLUMNS = ["original_prompt", "edited_prompt", "original_image", "edited_image", "triplet_id", "candidate"]


def invert_pairs(run: PipelineConfig, word: Word, left_out: Counter[str]) -> Iterator[SourceRow]:
    """Yields the accepted pairs of a run with captions, turned round; counts why others are left out.

    ValueError if the run has no such pair.
    """
    shards, settings = pair_shards(run.out), run.dataset
    kept: dict[int, set[int]] = {number: set() for number in range(len(shards))}
    for place, split in split_places(index_pairs(shards, settings.seed), settings.test_fraction):
        if split is None or side_of(place.captions[1], settings.test_fraction) != split:
            left_out["caption in the other split"] += 1
        else:
            kept[place.shard].add(place.row)
    num = 0
    for number, path in enumerate(shards):
        rows = _with_captions((row for _, row in read_rows(path, kept[number], _COLUMNS)), left_out)
        while chunk := list(islice(rows, AT_ONCE)):
            for row in _invert(chunk, word, left_out):
                num += 1
                yield row
    if not num:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none was accepted"
        raise ValueError(f"{run.out} has no pair that can be turned round: {why}.")


def _with_captions(rows: Iterator[Row], left_out: Counter[str]) -> Iterator[Row]:
    for row in rows:
        if row["original_prompt"] and row["edited_prompt"]:
            yield row
        else:
            left_out["no caption"] += 1


def _invert(chunk: list[Row], word: Word, left_out: Counter[str]) -> Iterator[SourceRow]:
    changes = [Change(row["edited_prompt"], row["original_prompt"]) for row in chunk]
    for row, change, wording in zip(chunk, changes, word(changes), strict=True):
        if wording is None:
            left_out["no wording"] += 1
            continue
        yield SourceRow(
            original_image=row["edited_image"]["bytes"],
            edited_image=row["original_image"]["bytes"],
            original_prompt=change.before,
            edit_prompt=wording.edit_prompt,
            edited_prompt=change.after,
            edit_type=wording.edit_type,
            group=f"{row['triplet_id']}-{row['candidate']}",
        )
