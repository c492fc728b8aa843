"""The words of the report: names of reasons, figures and editors, and numbers as people write them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ip2p import scoring
from ip2p.evaluation.measures import columns
from ip2p.filtering import REASONS as FILTER_REASONS
from ip2p.prompts.format import REASONS as PROMPT_REASONS
from ip2p.report.facts import Figure, Figures

REASONS: dict[str, str] = {"": "accepted", **PROMPT_REASONS, **FILTER_REASONS}

SCORES = {score.column: score.title for score in scoring.SCORES.values()}
"""Short names of a pair's scores by column."""

EDITOR = "trained editor"
EDITORS = {"model": EDITOR, "copy": "copy the input"}
MOST_LETTERS = 300
MOST_TYPES = 40
"""Edit types that a list or a chart has room for."""


def editor_name(name: str) -> str:
    """Names an editor as readers know it."""
    return EDITORS.get(name, name).replace("sdedit", "SDEdit")


def reason_name(reason: str) -> str:
    """Says a verdict in words."""
    return REASONS.get(reason, reason)


def headings_of(*figures: Figures) -> dict[str, str]:
    """Returns headings of the figures that one of them has: shares, means, then what no measure declares."""
    declared = sorted(columns().values(), key=lambda column: column.kind == "mean")
    headings = {column.name: column.heading for column in declared if column.shown_in != "nowhere"}
    measured = {name for row in figures for name, figure in row.values.items() if figure.interval}
    headings |= {name: name for name in sorted(measured - columns().keys())}
    return {name: words for name, words in headings.items() if any(row.get(name) for row in figures)}


def title_of(name: str) -> str:
    """Returns the title of a measured value, or its name if no measure declares it."""
    return columns()[name].title if name in columns() else name


def is_share(name: str) -> bool:
    """True for a figure that is a share of the edits."""
    return name in columns() and columns()[name].kind == "share"


def clipped(text: object) -> str:
    """Returns a text on one line, cut to what a card or a table has room for."""
    words = " ".join(str(text or "").split())
    return words if len(words) <= MOST_LETTERS else words[: MOST_LETTERS - 1] + "…"


def percent(value: float) -> str:
    """Writes a share in whole percent, with a decimal near the ends."""
    return f"{100 * value:.{_decimals(value)}f}\u00a0%"


def percents(low: float, high: float) -> str:
    """Writes a range of shares, both ends as exact as the more exact one."""
    decimals = max(_decimals(low), _decimals(high))
    return f"{100 * low:.{decimals}f}–{100 * high:.{decimals}f}\u00a0%"


def _decimals(share: float) -> int:
    return int(0 < share < 0.01 or 0.99 < share < 1)


def score(value: float) -> str:
    """Writes a similarity with three decimals and a true minus sign."""
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else "–"


def scores(low: float, high: float) -> str:
    """Writes a range of similarities."""
    return f"{score(low)} to {score(high)}" if low < 0 else f"{score(low)}–{score(high)}"


def signed(value: float) -> str:
    """Writes a difference with its sign."""
    return f"{value:+.3f}".replace("-", "−") if math.isfinite(value) else "–"


def count(value: int) -> str:
    """Writes a number with its thousands apart."""
    return f"{value:,}".replace(",", "\u202f")


def p_value(value: float) -> str:
    """Writes a p-value with three decimals."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def duration(seconds: float) -> str:
    """Writes a time in its two largest units."""
    if seconds < 1:
        return "< 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure in a table, with its interval in small letters."""

    value: str
    interval: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a table of figures; None stands for what was not measured."""

    name: str
    n: int
    cells: list[Cell | None]
    knob: str = ""
    """The setting that a point of a curve stands for."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of figures; `columns` are the headings of the cells."""

    columns: list[str]
    lines: list[Line]


def cell(figures: Figures | None, name: str) -> Cell | None:
    """Writes a figure and its interval; None if there is none."""
    figure = figures.get(name) if figures else None
    if figure is None:
        return None
    form, spread = (percent, percents) if is_share(name) else (score, scores)
    return Cell(form(figure.value), spread(*figure.interval) if figure.interval else "")


def difference_cell(figure: Figure | None) -> Cell | None:
    """Writes a mean difference and its interval."""
    if figure is None:
        return None
    interval = figure.interval
    return Cell(signed(figure.value), f"{signed(interval[0])} to {signed(interval[1])}" if interval else "")
