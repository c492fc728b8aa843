"""Contact sheets that can be filtered: who is on them, and by what readers may narrow them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ip2p.evaluation.metrics import types_of
from ip2p.evaluation.report import choosing
from ip2p.evaluation.report.cards import OUTCOMES, Card, edit_cards, oracle_of, outcome, pair_cards
from ip2p.evaluation.report.making import num_accepted
from ip2p.evaluation.report.pictures import Album
from ip2p.evaluation.report.reading import Row, RunFacts
from ip2p.evaluation.report.wording import mapping, reason_name

Section = dict[str, Any]

NUM_PAIRS, NUM_EDITS, NUM_EXTREMES = 480, 280, 8
NUM_OF_TYPE = 2
"""Of the best and the worst, so many of one edit type."""
PAIR_BYTES, EDIT_BYTES, EXTREME_BYTES = 7_500_000, 4_500_000, 1_000_000
"""What the pictures of a sheet may take of the page."""


def sheet(name: str, cards: Sequence[Card], fields: Mapping[str, tuple[str, Mapping[str, str]]]) -> Section:
    """Cards and the controls that narrow them; `fields` is mark → (label, value → words)."""
    selects = [_select(cards, field, label, words) for field, (label, words) in fields.items()]
    names = {key: words for card in cards for key, words in card["names"].items()}
    ranges = [_range(cards, key, words) for key, words in names.items()]
    return {
        "name": name,
        "cards": cards,
        "selects": [select for select in selects if len(select["options"]) > 1],
        "ranges": [found for found in ranges if found["low"] < found["high"]],
    }


def _select(cards: Sequence[Card], field: str, label: str, words: Mapping[str, str]) -> Section:
    counts = Counter(card["marks"][field] for card in cards if card["marks"].get(field))
    order = [*(value for value in words if value in counts), *sorted(counts.keys() - words.keys())]
    options = [{"value": value, "words": words.get(value, value), "count": counts[value]} for value in order]
    return {"name": field, "label": label, "options": options}


def _range(cards: Sequence[Card], key: str, words: str) -> Section:
    """Bounds on whole hundredths around all that is shown."""
    values = [card["scores"][key] for card in cards if key in card["scores"]]
    step = 0.01 if max(values) - min(values) < 10 else 1.0
    low, high = math.floor(min(values) / step) * step, math.ceil(max(values) / step) * step
    return {"name": key, "label": words, "low": round(low, 2), "high": round(high, 2), "step": step}


def pairs(facts: RunFacts) -> Section:
    """Rendered pairs, accepted and rejected, in turns from every edit type and verdict."""
    if not facts.pairs:
        return {"missing": _no_pairs(facts)}
    judged = oracle_of(facts.oracle, facts.pairs)

    def group(row: Row) -> tuple[Any, ...]:
        seen = judged.get((row["triplet_id"], row["candidate"]), {}).get("success")
        return row["edit_type"], row["reason"], bool(row["accepted"]), seen

    album = Album(PAIR_BYTES)
    cards = pair_cards(choosing.take_turns(facts.pairs, group, NUM_PAIRS), judged, album)
    reasons = {str(row["reason"]): reason_name(row["reason"]) for row in facts.pairs if not row["accepted"]}
    fields = {
        "type": ("Edit type", _kinds(facts, facts.pairs)),
        "verdict": ("Filter's verdict", {"accepted": "accepted", **dict(sorted(reasons.items()))}),
        "oracle": ("Oracle", {"right": "right", "wrong": "wrong"}),
    }
    total = facts.candidates.num_rows or len(facts.pairs)
    alone = total > num_accepted(facts) and all(row["accepted"] for row in facts.pairs)
    found = sheet("pairs", cards, fields)
    return {**found, "total": total, "left_out": album.num_left_out, "only_accepted": alone}


def _kinds(facts: RunFacts, rows: Sequence[Row]) -> dict[str, str]:
    return {kind: kind for kind in types_of(rows, list(mapping(facts.figures.get("by_type"))))}


def _no_pairs(facts: RunFacts) -> str:
    if not facts.candidates.num_rows:
        return "No pairs were rendered yet."
    if not num_accepted(facts):
        return "No candidate was accepted, and " + REJECTED_GONE
    return "The pairs' pictures are gone (pairs/)."


REJECTED_GONE = (
    "the images of rejected candidates were not kept; run with --rendering.keep-rejected-images to see them."
)


def edits(facts: RunFacts) -> Section:
    """The trained editor's held-out edits, in turns from every edit type and outcome."""
    if not facts.edits or facts.cases is None:
        return {"missing": "No held-out edits were made yet."}
    album = Album(EDIT_BYTES)
    chosen = choosing.take_turns(facts.edits, lambda row: (row["edit_type"], outcome(row)), NUM_EDITS)
    cards = edit_cards(facts, chosen, album)
    fields = {
        "type": ("Edit type", _kinds(facts, facts.edits)),
        "verdict": ("Oracle", OUTCOMES),
        "no_op": ("Left as it was", {"yes": "yes", "no": "no"}),
    }
    return {**sheet("edits", cards, fields), "total": len(facts.edits), "left_out": album.num_left_out}


def extremes(facts: RunFacts) -> Section:
    """The best and the worst held-out edits."""
    ranked = choosing.rank_edits(facts.edits) if facts.cases is not None else []
    if len(ranked) < 2:
        return {"missing": "No held-out edits were made yet." if not facts.edits else "Nothing tells the edits apart."}
    half, album = len(ranked) // 2, Album(EXTREME_BYTES)
    most = NUM_OF_TYPE if len({row["edit_type"] for row in ranked}) > 1 else NUM_EXTREMES
    worst, best = (choosing.first_of_each(some[:half], NUM_EXTREMES, most) for some in (ranked[::-1], ranked))
    return {
        "worst": edit_cards(facts, worst, album),
        "best": edit_cards(facts, best, album),
        "most": most if most < NUM_EXTREMES else None,
        "judged": any(row.get("success") is not None for row in ranked),
        "total": len(ranked),
    }


def glance(facts: RunFacts) -> list[Card]:
    """The first held-out edit of every edit type, good or bad."""
    if facts.cases is None:
        return []
    ordered = sorted(facts.edits, key=lambda row: row["case"])
    kinds = list(_kinds(facts, facts.edits))[:NUM_EXTREMES]
    firsts = [next(row for row in ordered if str(row["edit_type"]) == kind) for kind in kinds]
    return edit_cards(facts, firsts, Album(EXTREME_BYTES))
