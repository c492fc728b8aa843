"""The cards of the contact sheets: two pictures, the instruction, and what scores, filter and oracle say of them.

A card carries as `marks` and `scores` what its sheet can be filtered by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ip2p.evaluation.report.pictures import Album, Picture, read_pictures
from ip2p.evaluation.report.reading import Row, RunFacts
from ip2p.evaluation.report.wording import MEASURES, SCORES, clipped, is_number, reason_name

Card = dict[str, Any]

OUTCOMES = {
    "success": "done and kept",
    "done": "done, not kept",
    "kept": "kept, not done",
    "neither": "neither done nor kept",
    "illegible": "not legible",
}


def outcome(judged: Row) -> str | None:
    """What the oracle says of an edit; None where it says nothing."""
    if judged.get("success") is None:
        return None
    if judged["success"]:
        return "success"
    if judged.get("legible") is False:
        return "illegible"
    if judged.get("done"):
        return "done"
    return "kept" if judged.get("kept") else "neither"


def oracle_of(table: pa.Table, rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
    """The domain's verdicts of some pairs by (triplet id, candidate)."""
    if not table.num_rows or not rows:
        return {}
    wanted = pa.array({row["triplet_id"] for row in rows}, pa.string())
    found = table.filter(pc.is_in(table["triplet_id"].cast(pa.string()), value_set=wanted)).to_pylist()
    return {(row["triplet_id"], row["candidate"]): row for row in found}


def pair_cards(rows: Sequence[Row], judged: dict[tuple[str, int], Row], album: Album) -> list[Card]:
    """Original, edited, scores and verdicts of rendered pairs; a pair whose pictures are gone is left out."""
    found = read_pictures(rows, ("original_image", "edited_image"))
    return [
        _pair_card(row, pictures, judged.get((row["triplet_id"], row["candidate"]), {}))
        for row, pictures in zip(rows, found, strict=True)
        if pictures and album.takes(*pictures)
    ]


def _pair_card(row: Row, pictures: Sequence[Picture], judged: Row) -> Card:
    verdict = "accepted" if row["accepted"] else str(row["reason"] or "rejected")
    seen = outcome(judged)
    badges = [("plain", row["edit_type"]), ("kept" if row["accepted"] else "lost", reason_name(row["reason"]))]
    return {
        "before": pictures[0].saying(f"Original: {clipped(row['original_prompt'])}"),
        "after": pictures[1].saying(f"Edited: {clipped(row['edited_prompt'])}"),
        "instruction": clipped(row["edit_prompt"]),
        "badges": [badge for badge in badges if badge[1]],
        "seen": _seen(seen),
        "marks": {
            "type": row["edit_type"] or "",
            "verdict": verdict,
            "oracle": "" if seen is None else "right" if seen == "success" else "wrong",
        },
        "scores": {name: row[name] for name in SCORES if is_number(row.get(name))},
        "names": {name: title for name, title in SCORES.items() if is_number(row.get(name))},
    }


def _seen(seen: str | None) -> Row | None:
    return {"good": seen == "success", "words": OUTCOMES[seen]} if seen else None


def edit_cards(facts: RunFacts, rows: Sequence[Row], album: Album) -> list[Card]:
    """Input, instruction, output and verdict of held-out edits."""
    inputs = read_pictures([{"file": facts.cases, "index": row["case"]} for row in rows], ("original_image",))
    outputs = read_pictures(rows, ("edited_image",))
    return [
        _edit_card(row, (*one, *other))
        for row, one, other in zip(rows, inputs, outputs, strict=True)
        if one and other and album.takes(*one, *other)
    ]


def _edit_card(row: Row, pictures: Sequence[Picture]) -> Card:
    seen = outcome(row)
    badges = [("plain", row["edit_type"]), ("lost", "practically as before" if row.get("no_op") else "")]
    before = clipped(row.get("original_prompt")) or "a held-out picture"
    scores = {name: row[name] for name in edit_scores(row)}
    return {
        "before": pictures[0].saying(f"Input: {before}"),
        "after": pictures[1].saying(f"Output for the instruction: {clipped(row['edit_prompt'])}"),
        "instruction": clipped(row["edit_prompt"]),
        "badges": [badge for badge in badges if badge[1]],
        "seen": _seen(seen),
        "marks": {
            "type": row["edit_type"] or "",
            "verdict": seen or "",
            "no_op": "" if row.get("no_op") is None else "yes" if row["no_op"] else "no",
        },
        "scores": scores,
        "names": {name: MEASURES.get(name, name).removeprefix("CLIP ").rstrip(" ↑↓") for name in scores},
        "case": row["case"],
    }


def edit_scores(row: Row) -> list[str]:
    """What an edit is measured by, CLIP's words on captions aside: they say more of the captions."""
    left_out = ("case", "clip_original", "clip_edited")
    return [name for name, value in row.items() if is_number(value) and name not in left_out and name != "index"]
