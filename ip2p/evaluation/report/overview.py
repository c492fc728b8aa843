"""What comes first and last on the page: the figures that sum a run up, its settings and its versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ip2p.evaluation.report.making import num_accepted, precisions
from ip2p.evaluation.report.reading import Row, RunFacts
from ip2p.evaluation.report.wording import count, is_number, percent, percents, score

Section = dict[str, Any]


def headlines(facts: RunFacts) -> list[Section]:
    """The few figures that sum the run up: title, value and a line beneath."""
    found = facts.figures
    tiles = _judged(found) if found.get("success") is not None else _measured(found)
    if total := facts.candidates.num_rows:
        num = num_accepted(facts)
        tiles.append(_tile("Accepted pairs", count(num), f"{percent(num / total)} of {count(total)} candidates"))
    precision = precisions(facts)
    if right := precision["accepted"]:
        everything = precision["all"]
        note = f"{percent(everything['value'])} of all candidates" if everything else "by the oracle"
        tiles.append(_tile("Accepted that are right", percent(right["value"]), note))
    if facts.seconds:
        tiles.append(_tile("Time", _minutes(sum(facts.seconds.values())), "all stages"))
    return tiles


def _judged(found: Row) -> list[Section]:
    names = {"success": ("Edits that succeed", "done and kept"), "done": ("Done", "the change is there")}
    names["kept"] = ("Kept", "all else as before")
    tiles = []
    for name, (title, note) in names.items():
        spread = f"{percents(*found[f'{name}_interval'])} (95\u00a0%), n\u00a0=\u00a0{found['n']}"
        tiles.append(_tile(title, percent(found[name]), f"{note}; {spread}"))
    return tiles


def _measured(found: Row) -> list[Section]:
    tiles = []
    if is_number(found.get("clip_direction")):
        tiles.append(_tile("CLIP direction", score(found["clip_direction"]), f"{count(found['n'])} held-out edits"))
    if is_number(found.get("clip_image")):
        tiles.append(_tile("CLIP image similarity", score(found["clip_image"]), "original against edited"))
    return tiles


def _tile(title: str, value: str, note: str) -> Section:
    return {"title": title, "value": value, "note": note}


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


MOST_SIGNS = 2_000
"""Of a setting: a long list is cut."""


def setting_rows(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The config as (dotted name, value) lines."""
    rows: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            rows += [(f"{key}.{name}", text) for name, text in setting_rows(value)]
        else:
            rows.append((key, str(value)[:MOST_SIGNS]))
    return rows
