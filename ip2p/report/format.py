"""How the report says things: names of reasons, figures and editors, and numbers as people write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from ip2p import scoring
from ip2p.evaluation.measures import columns
from ip2p.filtering import REASONS as FILTER_REASONS

Row = Mapping[str, Any]

REASONS = {
    "": "accepted",
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
    **FILTER_REASONS,
}

SCORES = {score.column: score.title for score in scoring.SCORES.values()}
"""Short names of what a pair is scored by."""

EDITOR = "trained editor"
EDITORS = {"model": EDITOR, "copy": "copy the input"}
MOST_LETTERS = 300


def editor_name(name: str) -> str:
    """A baseline by the name that readers know."""
    return EDITORS.get(name, name).replace("sdedit", "SDEdit")


def reason_name(reason: str | None) -> str:
    """A verdict in words."""
    return REASONS.get(reason or "", reason or "")


def headings_of(*figures: Row) -> dict[str, str]:
    """Headings of what one of the figures has, by name: shares, means, then figures that no measure declares."""
    known = sorted(columns().values(), key=lambda column: column.kind == "mean")
    headings = {column.name: column.heading for column in known if column.shown != "nowhere"}
    names = {name.removesuffix("_interval") for row in figures for name in row if name.endswith("_interval")}
    headings |= {name: name for name in sorted(names - columns().keys())}
    return {name: words for name, words in headings.items() if any(is_number(row.get(name)) for row in figures)}


def title_of(name: str) -> str:
    """Title of a measured value, or its name if no measure declares it."""
    return columns()[name].title if name in columns() else name


def is_share(name: str) -> bool:
    """True for a figure that is a share of the edits."""
    return name in columns() and columns()[name].kind == "share"


def is_number(value: Any) -> TypeGuard[float]:
    """True for what can be printed as a figure."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def clipped(text: Any) -> str:
    """Words of a card or a table, not longer than it bears."""
    words = " ".join(str(text or "").split())
    return words if len(words) <= MOST_LETTERS else words[: MOST_LETTERS - 1] + "…"


def mapping(value: Any) -> dict[str, Any]:
    """What should be a dict, or an empty one."""
    return value if isinstance(value, dict) else {}


def percent(value: float) -> str:
    """A share in whole percent, with a decimal near the ends."""
    near_end = 0 < value < 0.01 or 0.99 < value < 1
    return f"{100 * value:.1f}\u00a0%" if near_end else f"{100 * value:.0f}\u00a0%"


def percents(low: float, high: float) -> str:
    """A range of shares, both ends as exact as the more exact one."""
    exact = any(0 < bound < 0.01 or 0.99 < bound < 1 for bound in (low, high))
    return f"{100 * low:.1f}–{100 * high:.1f}\u00a0%" if exact else f"{100 * low:.0f}–{100 * high:.0f}\u00a0%"


def scores(low: float, high: float) -> str:
    """A range of similarities."""
    return f"{score(low)} to {score(high)}" if low < 0 else f"{score(low)}–{score(high)}"


def score(value: float) -> str:
    """A similarity with three decimals and a true minus sign."""
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else "–"


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{value:+.3f}".replace("-", "−") if math.isfinite(value) else "–"


def count(value: int) -> str:
    """A number with thousands apart."""
    return f"{value:,}".replace(",", "\u202f")


def p_value(value: float) -> str:
    """A p, as exact as anyone reads it."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def cell(figures: Row | None, name: str) -> Row | None:
    """A figure and its interval as text; None where there is none."""
    if not figures or not is_number(figures.get(name)):
        return None
    bounds = figures.get(f"{name}_interval") or ()
    form, spread = (percent, percents) if is_share(name) else (score, scores)
    return {"value": form(figures[name]), "interval": spread(*bounds) if len(bounds) == 2 else ""}
