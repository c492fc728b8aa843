"""Contact sheets that can be filtered: what is on them, and what readers can filter and sort them by."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ip2p.report.data import num_accepted
from ip2p.report.facts import Edit, HeldOutEdit, Pair, Place, edit_types_of, first_of_each, rank_edits, take_turns
from ip2p.report.format import SCORES, clipped, reason_name, title_of
from ip2p.report.pictures import Album, Thumbnail, read_pictures
from ip2p.report.reading import RunFacts

NUM_PAIRS, NUM_EDITS, NUM_EXTREMES, NUM_SIDE_BY_SIDE = 480, 280, 8, 160
NUM_OF_TYPE = 2
"""Edits of one type among the best or the worst."""
MOST_EDITORS = 6
"""Editors side by side."""
PAIR_BYTES, EDIT_BYTES, EXTREME_BYTES, SIDE_BYTES = 7_500_000, 4_500_000, 1_000_000, 12_000_000
"""Bytes that the pictures of a sheet may take of the page."""
CAPTION_SCORES = ("clip_original", "clip_edited")
"""Measured of a held-out edit, but not on its card: they say more about the captions."""
REJECTED_GONE = (
    "the images of rejected candidates were not kept; run with --rendering.keep-rejected-images to see them."
)
OUTCOMES = {
    "success": "done and kept",
    "done": "done, not kept",
    "kept": "kept, not done",
    "neither": "neither done nor kept",
    "illegible": "not legible",
}
EditT = TypeVar("EditT", bound=Edit)
Fields = Mapping[str, tuple[str, Mapping[str, str]]]
"""Marks of the cards that a sheet can be filtered by: mark → (label, value → words)."""


@dataclass(frozen=True, slots=True)
class Badge:
    """A few words in a pill; `css` is plain, kept, lost, good or bad."""

    css: str
    words: str


@dataclass(frozen=True, slots=True)
class Value:
    """A score on a card."""

    name: str
    title: str
    value: float


@dataclass(frozen=True, slots=True)
class Output:
    """An edited picture; with its editor's name if there are several."""

    picture: Thumbnail
    verdict: Badge | None
    name: str = ""
    scores: Sequence[Value] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A picture, an instruction and what came out."""

    before: Thumbnail
    instruction: str
    outputs: Sequence[Output]
    badges: Sequence[Badge] = ()
    marks: Mapping[str, str]
    """Values that the sheet can be filtered by."""
    scores: Sequence[Value] = ()
    """Scores that it can be filtered and sorted by."""


@dataclass(frozen=True, slots=True)
class Select:
    """A filter by a mark."""

    name: str
    label: str
    options: list[tuple[str, str, int]]
    """(value, words, number of cards)."""


@dataclass(frozen=True, slots=True)
class Range:
    """A filter by a score."""

    name: str
    label: str
    low: float
    high: float
    step: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Cards and the controls that filter them."""

    name: str
    cards: list[Card]
    selects: list[Select]
    ranges: list[Range]
    total: int
    left_out: int
    """Cards that did not fit into the page."""
    note: str = ""


def sheet(name: str, cards: list[Card], fields: Fields, album: Album, total: int, note: str = "") -> Sheet:
    """Lays out cards with a control for each mark and score that differs between them."""
    selects = [_select(cards, mark, label, words) for mark, (label, words) in fields.items()]
    titles = {score.name: score.title for card in cards for score in card.scores}
    ranges = [_range(cards, name, title) for name, title in titles.items()]
    return Sheet(
        name=name,
        cards=cards,
        selects=[select for select in selects if len(select.options) > 1],
        ranges=[bounds for bounds in ranges if bounds.low < bounds.high],
        total=total,
        left_out=album.num_left_out,
        note=note,
    )


def _select(cards: Sequence[Card], mark: str, label: str, words: Mapping[str, str]) -> Select:
    counts = Counter(card.marks[mark] for card in cards if card.marks.get(mark))
    order = [*(value for value in words if value in counts), *sorted(counts.keys() - words.keys())]
    return Select(mark, label, [(value, words.get(value, value), counts[value]) for value in order])


def _range(cards: Sequence[Card], name: str, title: str) -> Range:
    """Returns bounds on whole hundredths around all values; on whole numbers if they are far apart."""
    values = [score.value for card in cards for score in card.scores if score.name == name]
    step = 0.01 if max(values) - min(values) < 10 else 1.0
    low, high = math.floor(min(values) / step) * step, math.ceil(max(values) / step) * step
    return Range(name, title, round(low, 2), round(high, 2), step)


def pairs(facts: RunFacts) -> Sheet | str:
    """Shows rendered pairs, accepted and rejected, in turns from every edit type and verdict."""
    if not facts.candidates.num_rows and not facts.pairs:
        return "No pairs were rendered yet."
    if not facts.pairs:
        is_gone = num_accepted(facts) > 0
        return (
            "The pictures of the pairs are gone (pairs/)."
            if is_gone
            else f"No candidate was accepted, and {REJECTED_GONE}"
        )

    def group(pair: Pair) -> tuple[object, ...]:
        return pair.edit_type, pair.reason, pair.accepted, pair.judgement and pair.judgement.success

    album = Album(PAIR_BYTES)
    chosen = take_turns(facts.pairs, group, NUM_PAIRS)
    cards = _cards(chosen, [pair.place for pair in chosen], _pair_card, album)
    reasons = {pair.reason: reason_name(pair.reason) for pair in facts.pairs if not pair.accepted}
    fields: Fields = {
        "type": ("Edit type", _kinds(facts, facts.pairs)),
        "verdict": ("Filter's verdict", {"accepted": "accepted", **dict(sorted(reasons.items()))}),
        "oracle": ("Oracle", {"right": "right", "wrong": "wrong"}),
    }
    total = facts.candidates.num_rows or len(facts.pairs)
    only_accepted = total > num_accepted(facts) and all(pair.accepted for pair in facts.pairs)
    return sheet("pairs", cards, fields, album, total, f"Only accepted pairs: {REJECTED_GONE}" if only_accepted else "")


def _kinds(facts: RunFacts, edits: Sequence[Edit]) -> dict[str, str]:
    return {kind: kind for kind in edit_types_of(edits, facts.edit_types)}


def edits(facts: RunFacts) -> Sheet | str:
    """Shows the trained editor's held-out edits, in turns from every edit type and outcome."""
    if not facts.edits or facts.cases is None:
        return "No held-out edits were made yet."
    album = Album(EDIT_BYTES)
    chosen = take_turns(facts.edits, lambda edit: (edit.edit_type, edit.outcome), NUM_EDITS)
    fields: Fields = {
        "type": ("Edit type", _kinds(facts, facts.edits)),
        "verdict": ("Oracle", OUTCOMES),
        "no_op": ("Left as it was", {"yes": "yes", "no": "no"}),
    }
    return sheet("edits", edit_cards(chosen, facts.cases, album), fields, album, len(facts.edits))


@dataclass(frozen=True, slots=True, kw_only=True)
class Extremes:
    """The best and the worst held-out edits."""

    worst: list[Card]
    best: list[Card]
    most: int | None
    """Edits of one type at most; None if there is one type alone."""
    judged: bool
    total: int


def extremes(facts: RunFacts) -> Extremes | str:
    """Shows the best and the worst held-out edits."""
    ranked = rank_edits(facts.edits) if facts.cases is not None else []
    if len(ranked) < 2 or facts.cases is None:
        return "The edits do not differ in any score." if facts.edits else "No held-out edits were made yet."
    half, album = len(ranked) // 2, Album(EXTREME_BYTES)
    most = NUM_OF_TYPE if len({edit.edit_type for edit in ranked}) > 1 else NUM_EXTREMES
    worst, best = (first_of_each(ranking[:half], NUM_EXTREMES, most) for ranking in (ranked[::-1], ranked))
    return Extremes(
        worst=edit_cards(worst, facts.cases, album),
        best=edit_cards(best, facts.cases, album),
        most=most if most < NUM_EXTREMES else None,
        judged=any(edit.judgement for edit in ranked),
        total=len(ranked),
    )


def glance(facts: RunFacts) -> list[Card]:
    """Shows the first held-out edit of every edit type, good or bad."""
    if facts.cases is None:
        return []
    ordered = sorted(facts.edits, key=lambda edit: edit.case)
    kinds = list(_kinds(facts, facts.edits))[:NUM_EXTREMES]
    firsts = [next(edit for edit in ordered if edit.edit_type == kind) for kind in kinds]
    return edit_cards(firsts, facts.cases, Album(EXTREME_BYTES))


def edit_cards(edits: Sequence[HeldOutEdit], cases: Path, album: Album) -> list[Card]:
    """Shows input, instruction, output and verdict of held-out edits."""
    return _cards(edits, [Place(cases, edit.case) for edit in edits], _edit_card, album)


def _cards(
    edits: Sequence[EditT],
    originals: Sequence[Place],
    card: Callable[[EditT, Thumbnail, Thumbnail], Card],
    album: Album,
) -> list[Card]:
    """Makes cards of edits; one whose pictures are gone or too many is left out."""
    sides = read_pictures(originals, "original_image"), read_pictures([edit.place for edit in edits], "edited_image")
    return [
        card(edit, before, after)
        for edit, before, after in zip(edits, *sides, strict=True)
        if before and after and album.takes(before, after)
    ]


def _pair_card(pair: Pair, before: Thumbnail, after: Thumbnail) -> Card:
    outcome = pair.outcome
    return Card(
        before=before.described(f"Original: {clipped(pair.original_prompt)}"),
        instruction=clipped(pair.edit_prompt),
        outputs=[Output(after.described(f"Edited: {clipped(pair.edited_prompt)}"), outcome_badge(pair))],
        badges=_badges(pair, Badge("kept" if pair.accepted else "lost", reason_name(pair.reason))),
        marks={
            "type": pair.edit_type,
            "verdict": "accepted" if pair.accepted else pair.reason or "rejected",
            "oracle": "" if outcome is None else "right" if outcome == "success" else "wrong",
        },
        scores=[Value(name, title, pair.scores[name]) for name, title in SCORES.items() if name in pair.scores],
    )


def _edit_card(edit: HeldOutEdit, before: Thumbnail, after: Thumbnail) -> Card:
    instruction = clipped(edit.edit_prompt)
    return Card(
        before=before.described(_input_words(edit)),
        instruction=instruction,
        outputs=[Output(after.described(f"Output for the instruction: {instruction}"), outcome_badge(edit))],
        badges=_badges(edit, Badge("lost", "practically as before" if edit.no_op else "")),
        marks={
            "type": edit.edit_type,
            "verdict": edit.outcome or "",
            "no_op": "" if edit.no_op is None else "yes" if edit.no_op else "no",
        },
        scores=[
            Value(name, title_of(name).removeprefix("CLIP "), value)
            for name, value in edit.scores.items()
            if name not in CAPTION_SCORES
        ],
    )


def _badges(edit: Edit, *more: Badge) -> list[Badge]:
    return [badge for badge in (Badge("plain", edit.edit_type), *more) if badge.words]


def outcome_badge(edit: Edit) -> Badge | None:
    """Says the oracle's verdict; None if there is none."""
    return Badge("good" if edit.outcome == "success" else "bad", OUTCOMES[edit.outcome]) if edit.outcome else None


def _input_words(edit: Edit) -> str:
    return f"Input: {clipped(edit.original_prompt) or 'a held-out picture'}"


def side_by_side(
    editors: Mapping[str, Sequence[HeldOutEdit]],
    cases: Path,
    titles: Mapping[str, str],
    total: int,
    verdicts: Mapping[int, str] | None = None,
    order: Sequence[str] = (),
) -> Sheet | None:
    """Shows what several editors made of the same cases, one card a case; None if no card is whole.

    The edits of all editors are in the same order of cases, chosen from `total`; `titles` are of the scores beneath
    each picture. The cards can be filtered by `verdicts`, by case of the first editor, with the choices in `order`.
    """
    album, cards = Album(SIDE_BYTES), []
    first = next(iter(editors.values()))
    inputs = read_pictures([Place(cases, edit.case) for edit in first], "original_image")
    outputs = [read_pictures([edit.place for edit in edits], "edited_image") for edits in editors.values()]
    rows = zip(zip(*editors.values(), strict=True), inputs, zip(*outputs, strict=True), strict=True)
    for same, before, after in rows:
        pictures = [picture for picture in after if picture]
        if before and len(pictures) == len(editors) and album.takes(before, *pictures):
            by_editor = zip(editors, same, pictures, strict=True)
            cards.append(
                Card(
                    before=before.described(_input_words(same[0])),
                    instruction=clipped(same[0].edit_prompt),
                    outputs=[_output(name, edit, picture, titles) for name, edit, picture in by_editor],
                    badges=_badges(same[0]),
                    marks={"type": same[0].edit_type, "verdict": (verdicts or {}).get(same[0].case, "")},
                )
            )
    fields: Fields = {
        "type": ("Edit type", {}),
        "verdict": ("Who succeeds", {words: words for words in order}),
    }
    return sheet("edits", cards, fields, album, total) if cards else None


def _output(name: str, edit: HeldOutEdit, picture: Thumbnail, titles: Mapping[str, str]) -> Output:
    return Output(
        picture.described(f"Output of {name}: {clipped(edit.edit_prompt)}"),
        outcome_badge(edit),
        name,
        [Value(column, title, edit.scores[column]) for column, title in titles.items() if column in edit.scores],
    )
