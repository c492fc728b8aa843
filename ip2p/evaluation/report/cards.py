"""The cards of the contact sheets: two pictures, the instruction, and what scores, filter and oracle say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ip2p.evaluation.report import figures
from ip2p.evaluation.report.pictures import inline
from ip2p.evaluation.report.reading import Row, RunFacts, read_images

Card = dict[str, Any]

REASONS = {
    "unparsable": "not parsable",
    "no_op": "no change",
    "too_long": "too long",
    "duplicate": "duplicate",
    "near_duplicate": "much like an earlier one",
    "wrong_types": "fields of the wrong kind",
    "refused": "refused by the server",
    "language": "not English",
    "banned": "banned word",
    "moderated": "refused by moderation",
    "disagreement": "caption and instruction disagree",
    "low_original": "original image unlike its prompt",
    "low_edited": "edited image unlike its prompt",
    "low_direction": "change unlike the text's",
    "low_image": "images too unlike",
    "over_limit": "enough of this triplet",
}


def pair_cards(facts: RunFacts, rows: Sequence[Row]) -> list[Card]:
    """Original, edited, scores and reason of rendered pairs; a pair whose pictures are gone is left out."""
    found = read_images(rows, ("original_image", "edited_image"))
    cards = [_pair_card(row, images, facts) for row, images in zip(rows, found, strict=True) if images]
    return [card for card in cards if card]


def _pair_card(row: Row, images: Sequence[bytes], facts: RunFacts) -> Card | None:
    before = inline(images[0], f"Original: {row['original_prompt']}")
    after = inline(images[1], f"Edited: {row['edited_prompt']}")
    if before is None or after is None:
        return None
    judged = facts.oracle.get((row["triplet_id"], row["candidate"]))
    reason = REASONS.get(row["reason"], row["reason"])
    return {
        "before": before,
        "after": after,
        "instruction": row["edit_prompt"],
        "kind": row["edit_type"],
        "scores": [(name, row[column]) for column, (name, _) in figures.SCORES.items()],
        "reason": reason,
        "verdict": _verdict(judged) if judged else None,
    }


def _verdict(judged: Row) -> Card:
    """The oracle's word on an edit: a mark, words, and whether it is good."""
    if judged["success"]:
        return {"good": True, "words": "done and kept"}
    if not judged["legible"]:
        return {"good": False, "words": "not legible"}
    if judged["done"]:
        return {"good": False, "words": "done, not kept"}
    return {"good": False, "words": "kept, not done" if judged["kept"] else "neither done nor kept"}


def choose_edits(rows: Sequence[Row], num: int) -> list[Row]:
    """The first successes, then the first failures, by case number: as many of each, where there are."""
    ordered = sorted(rows, key=lambda row: row["case"])
    good = [row for row in ordered if row["success"]]
    bad = [row for row in ordered if not row["success"]]
    num_bad = min(len(bad), max(num // 2, num - len(good)))
    return good[: num - num_bad] + bad[:num_bad]


def edit_cards(facts: RunFacts, rows: Sequence[Row]) -> list[Card]:
    """Input, instruction, output and verdict of held-out edits."""
    inputs = read_images([{"file": facts.cases, "index": row["case"]} for row in rows], ("original_image",))
    outputs = read_images(rows, ("edited_image",))
    cards = [_edit_card(row, one, other) for row, one, other in zip(rows, inputs, outputs, strict=True)]
    return [card for card in cards if card]


def _edit_card(row: Row, one: Sequence[bytes] | None, other: Sequence[bytes] | None) -> Card | None:
    if one is None or other is None:
        return None
    before = inline(one[0], f"Input: {row['original_prompt'] or 'a held-out picture'}")
    after = inline(other[0], f"Output for the instruction: {row['edit_prompt']}")
    if before is None or after is None:
        return None
    judged = row["success"] is not None
    scores = [("direction", row["clip_direction"]), ("image", row["clip_image"])]
    return {
        "before": before,
        "after": after,
        "instruction": row["edit_prompt"],
        "scores": [] if judged else [(name, value) for name, value in scores if value is not None],
        "verdict": _verdict(row) if judged else None,
    }
