"""Joins accepted pairs into sessions: each edit starts from the very picture that the one before it made.

Pictures are the same if their files are, to the byte. Pairs may come from several runs: one whose pictures are those
that another has edited, or its inverse, which leads back to a picture that other edits start from. A pair keeps the
split that it has in its run, so a session lies in one split, and with it all its captions. A pair is in at most one
session. The columns are those of MagicBrush, then captions, edit type and the pair that each turn comes from.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ip2p import __version__, store
from ip2p.config import PipelineConfig
from ip2p.dataset.exporting import NOTE, new_folder
from ip2p.dataset.split import SPLITS, Split, index_pairs, pair_shards, read_rows, split_places
from ip2p.images import IMAGE_TYPE
from ip2p.records import content_hash, hash_picture
from ip2p.sources.columns import KNOWN_SCHEMAS, MAGICBRUSH_TURN, SIDES

COLUMNS = {ours: theirs for ours, theirs in KNOWN_SCHEMAS["osunlp/MagicBrush"].items() if ours != "mask_image"}
TEXTS = ("original_prompt", "edited_prompt", "edit_type")
SCHEMA = pa.schema(
    [
        (COLUMNS["group"], pa.string()),
        (MAGICBRUSH_TURN["turn"], pa.int64()),
        (COLUMNS["original_image"], IMAGE_TYPE),
        (COLUMNS["edit_prompt"], pa.string()),
        (COLUMNS["edited_image"], IMAGE_TYPE),
        *((name, pa.string()) for name in (*TEXTS, "source")),
    ]
)
COLUMNS_READ = (*SIDES, "edit_prompt", *TEXTS, "triplet_id", "candidate")
Row = dict[str, Any]
Where = tuple[int, int]
"""A shard's number among those of all runs, and a row in it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """An accepted pair as one step of a session, without its pictures."""

    where: Where
    split: Split
    original: str
    """Hash of the picture file that is edited."""
    edited: str
    edit_prompt: str
    name: str
    """The run's name and the pair's, as `source` gives them."""


@dataclass(frozen=True, slots=True)
class Sessions:
    """The sessions of some runs, and what is needed to read them."""

    shards: Sequence[Path]
    chains: list[list[Turn]]
    left_out: Counter[str]


def find_sessions(runs: Sequence[PipelineConfig], max_turns: int | None = None) -> Sessions:
    """Joins the accepted pairs of the runs, in the order of the runs and of their captions.

    ValueError with the way out if a run has no pairs, if the runs split captions differently, or if nothing joins.
    """
    fractions = {run.dataset.test_fraction for run in runs}
    if len(fractions) > 1:
        values = ", ".join(f"{fraction:g}" for fraction in sorted(fractions))
        raise ValueError(f"the runs have different test fractions, {values}. Give them one --dataset.test-fraction.")
    shards, names = list[Path](), list[str]()
    for run in runs:
        own = pair_shards(run.out)
        shards += own
        names += [run.out.name] * len(own)
    left_out = Counter[str]()
    turns = list(_index(shards, names, runs[0].dataset.test_fraction, left_out))
    sessions = [session for split in SPLITS for session in _join(turns, split, max_turns, left_out)]
    if not sessions:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none was accepted"
        raise ValueError(
            f"no pair of {', '.join(str(run.out) for run in runs)} starts from a picture that another one made: {why}. "
            "Name runs that continue it with --continued-by, such as its inverse by `ip2p dataset invert`."
        )
    return Sessions(shards, sorted(sessions, key=lambda session: session[0].where), left_out)


def _index(
    shards: Sequence[Path], names: Sequence[str], test_fraction: float, left_out: Counter[str]
) -> Iterator[Turn]:
    """Yields the pairs that may join; counts why others may not."""
    split_by_row = defaultdict[int, dict[int, Split | None]](dict)
    for place, split in split_places(index_pairs(shards, seed=0), test_fraction):
        split_by_row[place.shard][place.row] = split
    seen = set[tuple[str, str, str]]()
    for number, path in enumerate(tqdm(shards, desc="compare", unit="shard", disable=None, leave=False)):
        splits = split_by_row[number]
        for row_number, row in read_rows(path, splits, COLUMNS_READ):
            original, edited = (hash_picture(row[side]["bytes"]) for side in SIDES)
            split, key = splits[row_number], (original, edited, row["edit_prompt"])
            reason = "picture unchanged" if original == edited else "seen before" if key in seen else ""
            reason = reason or ("" if split else "caption in the other split")
            if reason or split is None:
                left_out[reason] += 1
                continue
            seen.add(key)
            yield Turn(
                (number, row_number), split, *key, name=f"{names[number]}/{row['triplet_id']}-{row['candidate']}"
            )


def _join(turns: Iterable[Turn], split: Split, max_turns: int | None, left_out: Counter[str]) -> Iterator[list[Turn]]:
    """Yields the sessions of a split, which use each pair once; from pictures that nothing leads to first."""
    leaving, outputs = defaultdict[str, list[Turn]](list), set[str]()
    for turn in turns:
        if turn.split == split:
            leaving[turn.original].append(turn)
            outputs.add(turn.edited)
    for start in sorted(leaving, key=lambda picture: picture in outputs):
        while leaving[start]:
            session = list(_walk(start, leaving, max_turns))
            if len(session) > 1:
                yield session
            else:
                left_out["nothing to join"] += 1


def _walk(picture: str, leaving: dict[str, list[Turn]], max_turns: int | None) -> Iterator[Turn]:
    """Yields one edit after another and removes them from what is left.

    Preferred are those that make a picture which the session has not shown, then those that can be continued.
    """
    visited, num = {picture}, 0
    while (options := leaving.get(picture)) and (max_turns is None or num < max_turns):
        turn = min(options, key=lambda each: (each.edited in visited, not leaving.get(each.edited)))
        options.remove(turn)
        yield turn
        picture, num = turn.edited, num + 1
        visited.add(picture)


def write_sessions(runs: Sequence[PipelineConfig], out: Path, max_turns: int | None = None) -> dict[str, int]:
    """Writes the sessions of the runs, a parquet file per split and shard of their first turns; returns counts.

    ValueError as in `find_sessions`, or if the folder holds anything but an earlier export.
    """
    sessions, counts = find_sessions(runs, max_turns), Counter[str]()
    files = defaultdict[tuple[Split, int], list[list[Turn]]](list)
    for session in sessions.chains:
        files[session[0].split, session[0].where[0]].append(session)
    with new_folder(out) as folder:
        (folder / "data").mkdir()
        for (split, number), group in files.items():
            rows = list(_rows_of(group, sessions.shards))
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "data" / f"{split}-{number:05d}.parquet")
            counts.update({f"{split} sessions": len(group), f"{split} turns": len(rows)})
        left_out = dict(sessions.left_out)
        note = {"layout": "sessions", "ip2p": __version__, "splits": dict(counts), "left_out": left_out}
        store.write_json(folder / NOTE, note)
    return {**counts, **left_out}


def _rows_of(sessions: Sequence[Sequence[Turn]], shards: Sequence[Path]) -> Iterator[Row]:
    pairs = read_pairs((turn for session in sessions for turn in session), shards)
    for session in sessions:
        name = content_hash("session", session[0].name, *(turn.original for turn in session))
        for number, turn in enumerate(session, start=1):
            pair = pairs[turn.where]
            yield {
                COLUMNS["group"]: name,
                MAGICBRUSH_TURN["turn"]: number,
                **{COLUMNS[ours]: pair[ours] for ours in (*SIDES, "edit_prompt")},
                **{text: pair[text] for text in TEXTS},
                "source": turn.name,
            }


def read_pairs(turns: Iterable[Turn], shards: Sequence[Path]) -> dict[Where, Row]:
    """Reads the pairs of these turns with their pictures."""
    rows_by_shard = defaultdict[int, set[int]](set)
    for shard, row in (turn.where for turn in turns):
        rows_by_shard[shard].add(row)
    return {
        (shard, place): row
        for shard in sorted(rows_by_shard)
        for place, row in read_rows(shards[shard], rows_by_shard[shard], COLUMNS_READ)
    }
