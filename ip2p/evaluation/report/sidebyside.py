"""The same held-out edits by several runs, picture beside picture: where they differ first of all."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ip2p.evaluation.report import choosing
from ip2p.evaluation.report.cards import OUTCOMES, outcome
from ip2p.evaluation.report.pictures import ROWS_AT_ONCE, Album, read_pictures
from ip2p.evaluation.report.reading import UNREADABLE, Row, RunFacts
from ip2p.evaluation.report.sheets import sheet
from ip2p.evaluation.report.wording import clipped, is_number

NUM_SHOWN, MOST_RUNS = 160, 6
SIDE_BYTES = 12_000_000
Key = tuple[str, str]

logger = logging.getLogger(__name__)


def case_hashes(file: Path) -> list[str]:
    """A hash per held-out picture, read a few at a time."""
    hashes: list[str] = []
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, columns=["original_image"]):
            hashes += [hashlib.sha256(cell["bytes"]).hexdigest() for cell in batch["original_image"].to_pylist()]
    return hashes


def side_by_side(shown: Mapping[str, RunFacts]) -> dict[str, Any] | None:
    """A sheet of the edits that all runs made; None where there is none."""
    some = dict(list(shown.items())[:MOST_RUNS])
    try:
        edits = {name: _by_key(facts) for name, facts in some.items()}
    except UNREADABLE as error:
        logger.warning("left the pictures out of the comparison: %s", error)
        return None
    first = next(iter(edits.values()))
    keys = [key for key in first if all(key in other for other in edits.values())]
    rows = [{**first[key], "key": key, "verdict": _verdict(edits, key)} for key in keys]
    chosen = choosing.take_turns(rows, lambda row: (row["verdict"], row["edit_type"]), NUM_SHOWN)
    album = Album(SIDE_BYTES)
    cards = _cards(some, edits, chosen, album)
    if not cards:
        return None
    order = [*(f"only {name}" for name in some), "some runs", "every run", "no run"]
    fields = {"type": ("Edit type", {}), "verdict": ("Who succeeds", {words: words for words in order})}
    return {**sheet("edits", cards, fields), "total": len(keys), "left_out": album.num_left_out}


def _by_key(facts: RunFacts) -> dict[Key, Row]:
    if facts.cases is None:
        return {}
    hashes = case_hashes(facts.cases)
    return {(hashes[row["case"]], row["edit_prompt"]): row for row in facts.edits}


def _verdict(edits: Mapping[str, Mapping[Key, Row]], key: Key) -> str:
    """Who of the runs succeeds."""
    found = {name: some[key].get("success") for name, some in edits.items()}
    if any(success is None for success in found.values()):
        return ""
    good = [name for name, success in found.items() if success]
    if len(good) in (0, len(found)):
        return "every run" if good else "no run"
    return f"only {good[0]}" if len(good) == 1 else "some runs"


def _cards(
    shown: Mapping[str, RunFacts], edits: Mapping[str, Mapping[Key, Row]], chosen: list[Row], album: Album
) -> list[dict[str, Any]]:
    first = next(iter(shown.values()))
    inputs = read_pictures([{"file": first.cases, "index": row["case"]} for row in chosen], ("original_image",))
    outputs = [read_pictures([some[row["key"]] for row in chosen], ("edited_image",)) for some in edits.values()]
    cards = []
    for row, before, *after in zip(chosen, inputs, *outputs, strict=True):
        whole = [pictures[0] for pictures in (before, *after) if pictures]
        if len(whole) <= len(shown) or not album.takes(*whole):
            continue
        cards.append(_card(row, whole[0], [_output(*each, row) for each in zip(edits.items(), whole[1:], strict=True)]))
    return cards


def _output(run: tuple[str, Mapping[Key, Row]], picture: Any, row: Row) -> dict[str, Any]:
    name, some = run
    found = some[row["key"]]
    seen = outcome(found)
    return {
        "name": name,
        "picture": picture.saying(f"Output of {name}: {clipped(row['edit_prompt'])}"),
        "seen": {"good": seen == "success", "words": OUTCOMES[seen]} if seen else None,
        "scores": [("direction", found["clip_direction"])] if is_number(found.get("clip_direction")) else [],
    }


def _card(row: Row, before: Any, outputs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "before": before.saying(f"Input: {clipped(row.get('original_prompt')) or 'a held-out picture'}"),
        "outputs": outputs,
        "instruction": clipped(row["edit_prompt"]),
        "kind": row["edit_type"],
        "marks": {"type": row["edit_type"] or "", "verdict": row["verdict"]},
        "scores": {},
        "names": {},
    }
