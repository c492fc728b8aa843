"""The records that a report is made of: edits with their scores, figures with their intervals, and who is chosen."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ip2p.evaluation.cases import EditJudgement
from ip2p.evaluation.metrics import Interval, types_of
from ip2p.scoring import SCORE_COLUMNS

Json = Mapping[str, object]
"""A JSON object, or the row of a table."""

UNREADABLE = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)
_SETTINGS = ("kind", "seed", "guidance_scale", "image_guidance_scale", "strength", "session", "is_last")
"""Columns of held-out edits that tell how an edit was made."""


def is_number(value: object) -> TypeGuard[float]:
    """True for what can be printed as a figure."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def mapping(value: object) -> dict[str, object]:
    """Returns what should be a JSON object, or an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> list[object]:
    """Returns what should be a JSON array, or an empty one."""
    return value if isinstance(value, list) else []


@dataclass(frozen=True, slots=True)
class Figure:
    """A share or a mean, with its 95 % interval if it has one."""

    value: float
    interval: Interval | None = None

    @property
    def bounds(self) -> Interval:
        """Returns the interval, or the value twice."""
        return self.interval or (self.value, self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures over some edits: an editor's, those of an edit type, or those of a point of a curve."""

    n: int
    values: Mapping[str, Figure]
    """Figures by column; those of a point of a curve include its settings."""
    by_type: Mapping[str, Figures] = field(default_factory=dict)

    def get(self, name: str) -> Figure | None:
        """Returns a figure; None if it was not measured."""
        return self.values.get(name)


def read_figures(raw: object) -> Figures:
    """Reads a part of figures.json; what is not a finite number is left out."""
    given = mapping(raw)
    names = [name for name in given if is_number(given[name]) and name != "n"]
    return Figures(
        n=count_of(given.get("n")),
        values={name: figure for name in names if (figure := read_figure(given[name], given.get(f"{name}_interval")))},
        by_type={kind: read_figures(part) for kind, part in mapping(given.get("by_type")).items()},
    )


def read_figure(value: object, interval: object = None) -> Figure | None:
    """Reads a figure and its interval; None if it is not a finite number."""
    if not is_number(value):
        return None
    bounds = [bound for bound in sequence(interval) if is_number(bound)]
    return Figure(value, (bounds[0], bounds[1]) if len(bounds) == 2 else None)


def read_curves(raw: object) -> dict[str, list[Figures]]:
    """Reads curves by name, without those that have no point."""
    return {name: [read_figures(point) for point in sequence(curve)] for name, curve in mapping(raw).items() if curve}


def count_of(value: object) -> int:
    """Reads a number of things; 0 if it is not given."""
    return int(value) if is_number(value) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The evaluation's figures."""

    editor: Figures
    """The trained editor's."""
    baselines: Mapping[str, Figures]
    curve: Sequence[Figures]
    """The trained editor's points over the image guidance."""
    curves: Mapping[str, Sequence[Figures]]
    paired: Mapping[str, object]
    """The trained editor against each baseline, as `evaluation.metrics.paired` returns it."""
    judge: Json
    """The CLIP that judges, and the one that filtered the training pairs."""
    skipped: str
    """Why there are no figures, if that is known."""
    parts: Sequence[str]


def read_evaluation(raw: Json) -> Evaluation:
    """Reads an evaluation's figures.json."""
    baselines = {name: read_figures(part) for name, part in mapping(raw.get("baselines")).items()}
    return Evaluation(
        editor=read_figures(raw),
        baselines={name: figures for name, figures in baselines.items() if figures.n},
        curve=[read_figures(point) for point in sequence(raw.get("curve"))],
        curves=read_curves(raw.get("curves")),
        paired=mapping(raw.get("paired")),
        judge=mapping(raw.get("judge")),
        skipped=str(raw.get("skipped") or ""),
        parts=[str(name) for name in sequence(raw.get("parts"))],
    )


@dataclass(frozen=True, slots=True)
class Place:
    """The row of a table that holds pictures."""

    file: Path
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A picture that was edited by an instruction, and what is known of the edit."""

    place: Place
    edit_type: str
    original_prompt: str = ""
    edit_prompt: str = ""
    edited_prompt: str = ""
    scores: Mapping[str, float]
    judgement: EditJudgement | None = None
    """The domain's verdict; None if no domain judged it."""
    key: str
    """Names the edit, for draws by hash."""

    @property
    def outcome(self) -> str | None:
        """Returns the oracle's verdict in a word; None if there is none."""
        if self.judgement is None:
            return None
        if self.judgement.success:
            return "success"
        if not self.judgement.legible:
            return "illegible"
        return "done" if self.judgement.done else "kept" if self.judgement.kept else "neither"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Edit):
    """A rendered pair."""

    accepted: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutEdit(Edit):
    """What an editor made of a held-out picture."""

    case: int
    model: str = ""
    """The editor's name."""
    no_op: bool | None = None
    """True if the output is practically the input; None if that was not measured."""


E = TypeVar("E", bound=Edit)


def edit_types_of(edits: Sequence[Edit], order: Sequence[str] = ()) -> list[str]:
    """Returns the edit types that occur, in the given order."""
    return types_of(({"edit_type": edit.edit_type} for edit in edits), order)


def held_out_edit(row: Json, place: Place) -> HeldOutEdit:
    """Reads a row of an evaluation's parts."""
    other = {name: value for name, value in row.items() if name not in (*_SETTINGS, "case")}
    return HeldOutEdit(
        place=place,
        **_texts_of(row),
        key=f"/{row['case']}",
        case=count_of(row["case"]),
        model=str(row.get("model") or ""),
        no_op=None if row.get("no_op") is None else bool(row["no_op"]),
        judgement=judgement_of(row),
        scores={name: value for name, value in other.items() if is_number(value)},
    )


def pair_of(row: Json, place: Place, judgements: Mapping[tuple[str, int], EditJudgement | None]) -> Pair:
    """Reads a row of the pairs table; `judgements` are by (triplet id, candidate)."""
    triplet_id, candidate = str(row["triplet_id"]), count_of(row["candidate"])
    return Pair(
        place=place,
        **_texts_of(row),
        key=f"{triplet_id}/{candidate}",
        accepted=bool(row["accepted"]),
        reason=str(row["reason"] or ""),
        judgement=judgements.get((triplet_id, candidate)),
        scores={name: value for name in SCORE_COLUMNS if is_number(value := row.get(name))},
    )


def _texts_of(row: Json) -> dict[str, str]:
    return {name: str(row.get(name) or "") for name in ("edit_type", "original_prompt", "edit_prompt", "edited_prompt")}


def judgement_of(row: Json) -> EditJudgement | None:
    """Reads the domain's verdict; None if there is none."""
    if row.get("success") is None:
        return None
    return EditJudgement(done=bool(row["done"]), kept=bool(row["kept"]), legible=bool(row["legible"]))


def take_turns(edits: Sequence[E], group: Callable[[E], object], num: int) -> list[E]:
    """Returns at most `num` edits, in turns from every group; edits of a group and groups of a turn ordered by hash."""
    groups: dict[object, list[E]] = defaultdict(list)
    for edit in sorted(edits, key=lambda edit: _hashed(edit.key)):
        groups[group(edit)].append(edit)
    turns = [
        (turn, _hashed(f"{turn}/{name}"), edit) for name, members in groups.items() for turn, edit in enumerate(members)
    ]
    return [edit for _, _, edit in sorted(turns, key=lambda item: item[:2])[:num]]


def _hashed(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()


def rank_edits(edits: Sequence[HeldOutEdit]) -> list[HeldOutEdit]:
    """Ranks from the best to the worst: by the oracle's verdict first, then by CLIP. Empty if all are alike.

    CLIP's part is the mean rank by direction and by image similarity, since the two differ in unit and spread: leaving
    the input as it was ranks low in the first, drawing another picture in the second.
    """
    marks = [_mark(edit) for edit in edits]
    ranks = [_ranks([edit.scores.get(name, math.nan) for edit in edits]) for name in ("clip_direction", "clip_image")]
    measured = [by_score for by_score in ranks if by_score is not None]
    if not measured and len(set(marks)) < 2:
        return []
    clip = np.mean(measured, axis=0) if measured else np.zeros(len(edits))
    order = sorted(range(len(edits)), key=lambda number: (-marks[number], -clip[number], edits[number].case))
    return [edits[number] for number in order]


def first_of_each(edits: Sequence[E], num: int, most: int) -> list[E]:
    """Returns the first edits, no more than `most` of an edit type: the easiest type would fill every place."""
    counts: Counter[str] = Counter()
    chosen: list[E] = []
    for edit in edits:
        counts[edit.edit_type] += 1
        if counts[edit.edit_type] <= most and len(chosen) < num:
            chosen.append(edit)
    return chosen


def _mark(edit: Edit) -> float:
    """Returns 3 for a success, plus 1 for each part that holds; 0 for an edit that nobody judged."""
    judgement = edit.judgement
    return 0.0 if judgement is None else 3.0 * judgement.success + judgement.done + judgement.kept + judgement.legible


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64] | None:
    """Returns mean ranks in 0 … 1, with 0.5 for NaN; None if fewer than two are numbers."""
    finite = np.isfinite(values)
    if finite.sum() < 2:
        return None
    from scipy.stats import rankdata

    ranks = np.full(len(values), 0.5)
    ranks[finite] = (rankdata(np.asarray(values)[finite]) - 1) / (finite.sum() - 1)
    return ranks
