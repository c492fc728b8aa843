"""Composes pairs that follow each other in a session, A → B → C, into one pair, A → C, with one instruction for both.

The instruction is worded anew from the captions of A and C and from both instructions, or joins these plainly on
request. A caption stays in the split in which the runs have it. `source` names both pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from ip2p.config import PipelineConfig
from ip2p.dataset.inverse import AT_ONCE
from ip2p.dataset.sessions import Row, Turn, find_sessions, read_pairs
from ip2p.dataset.split import side_of
from ip2p.prompts.wording import Change, Word, Wording
from ip2p.sources.pairs import SourceRow

EDIT_TYPE = "composition"
"""Type of an edit whose instruction joins two."""


@dataclass(frozen=True, slots=True)
class Composed:
    """Two pairs as one, without an instruction."""

    turns: tuple[Turn, Turn]
    first: Row
    second: Row

    @property
    def change(self) -> Change:
        """Returns the captions of the two ends, and both instructions."""
        steps = self.first["edit_prompt"], self.second["edit_prompt"]
        return Change(self.first["original_prompt"], self.second["edited_prompt"], steps)

    def as_source(self, wording: Wording) -> SourceRow:
        """Returns the pair with its instruction."""
        return SourceRow(
            original_image=self.first["original_image"]["bytes"],
            edited_image=self.second["edited_image"]["bytes"],
            original_prompt=self.change.before,
            edit_prompt=wording.edit_prompt,
            edited_prompt=self.change.after,
            edit_type=wording.edit_type,
            group="+".join(turn.name for turn in self.turns),
        )


def join_plainly(change: Change) -> Wording:
    """Joins the instructions of a change: "X, and y"."""
    first, second = change.steps
    second = second[:1].lower() + second[1:] if second[1:2].islower() else second
    return Wording(EDIT_TYPE, f"{first.rstrip(' .!;,')}, and {second}")


def compose_pairs(
    runs: Sequence[PipelineConfig], word: Word | None, left_out: Counter[str], *, join: bool
) -> Iterator[SourceRow]:
    """Yields the compositions of all neighbours in the sessions of the runs; counts why others are left out.

    With `join`, what has no wording is joined plainly. ValueError if there is no composition, or no session.
    """
    sessions, num = find_sessions(runs), 0
    neighbours = (both for session in sessions.chains for both in pairwise(session))
    while chunk := list(islice(neighbours, AT_ONCE)):
        pairs = read_pairs((turn for both in chunk for turn in both), sessions.shards)
        composed = (Composed(both, pairs[both[0].where], pairs[both[1].where]) for both in chunk)
        kept = list(_usable(composed, runs[0].dataset.test_fraction, left_out))
        changes = [each.change for each in kept]
        for each, wording in zip(kept, word(changes) if word else [None] * len(kept), strict=True):
            if wording is None and not join:
                left_out["no wording"] += 1
                continue
            num += 1
            yield each.as_source(wording or join_plainly(each.change))
    if not num:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise ValueError(f"{', '.join(str(run.out) for run in runs)}: no two edits can be composed: {why}.")


def _usable(composed: Iterator[Composed], test_fraction: float, left_out: Counter[str]) -> Iterator[Composed]:
    for each in composed:
        first, second = each.turns
        change = each.change
        if first.original == second.edited or (change.before and change.before == change.after):
            left_out["leads back"] += 1
        elif not change.before or not change.after:
            left_out["no caption"] += 1
        elif side_of(change.before, test_fraction) != first.split:
            left_out["caption in the other split"] += 1
        else:
            yield each
