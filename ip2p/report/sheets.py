"""Contact sheets that can be filtered: who is on them, and by what readers may narrow them."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ip2p.evaluation.metrics import types_of
from ip2p.report.data import num_accepted
from ip2p.report.facts import UNREADABLE, Row, RunFacts, first_of_each, rank_edits, take_turns
from ip2p.report.format import SCORES, clipped, is_number, mapping, reason_name, title_of
from ip2p.report.pictures import ROWS_AT_ONCE, Album, Picture, read_pictures

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
    cards = pair_cards(take_turns(facts.pairs, group, NUM_PAIRS), judged, album)
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
    chosen = take_turns(facts.edits, lambda row: (row["edit_type"], outcome(row)), NUM_EDITS)
    cards = edit_cards(facts, chosen, album)
    fields = {
        "type": ("Edit type", _kinds(facts, facts.edits)),
        "verdict": ("Oracle", OUTCOMES),
        "no_op": ("Left as it was", {"yes": "yes", "no": "no"}),
    }
    return {**sheet("edits", cards, fields), "total": len(facts.edits), "left_out": album.num_left_out}


def extremes(facts: RunFacts) -> Section:
    """The best and the worst held-out edits."""
    ranked = rank_edits(facts.edits) if facts.cases is not None else []
    if len(ranked) < 2:
        return {"missing": "No held-out edits were made yet." if not facts.edits else "Nothing tells the edits apart."}
    half, album = len(ranked) // 2, Album(EXTREME_BYTES)
    most = NUM_OF_TYPE if len({row["edit_type"] for row in ranked}) > 1 else NUM_EXTREMES
    worst, best = (first_of_each(some[:half], NUM_EXTREMES, most) for some in (ranked[::-1], ranked))
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
        "names": {name: title_of(name).removeprefix("CLIP ") for name in scores},
        "case": row["case"],
    }


def edit_scores(row: Row) -> list[str]:
    """What an edit is measured by, CLIP's words on captions aside: they say more of the captions."""
    left_out = ("case", "clip_original", "clip_edited")
    return [name for name, value in row.items() if is_number(value) and name not in left_out and name != "index"]


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
    chosen = take_turns(rows, lambda row: (row["verdict"], row["edit_type"]), NUM_SHOWN)
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
