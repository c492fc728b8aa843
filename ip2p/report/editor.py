"""How good the trained editor is: every figure beside its baselines, by edit type, with paired tests and who judged."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ip2p.report import charts
from ip2p.report.charts import knob_of, tradeoff_chart, usable
from ip2p.report.data import MOST_TYPES, num_accepted, precisions
from ip2p.report.facts import UNREADABLE, Row, RunFacts
from ip2p.report.format import (
    EDITOR,
    cell,
    clipped,
    count,
    editor_name,
    headings_of,
    is_number,
    is_share,
    mapping,
    p_value,
    percent,
    percents,
    score,
    signed,
)
from ip2p.report.pictures import Album, read_pictures
from ip2p.report.svg import MARKS, legend

Section = dict[str, Any]

ALL = "all types"


def quality(facts: RunFacts) -> Section:
    """The editor and its baselines: a chart by edit type, all figures, all figures by edit type, tests."""
    if not facts.figures.get("n"):
        return {"missing": facts.figures.get("skipped") or "The editor was not evaluated yet."}
    editors = editors_of(facts.figures)
    chart = _chart(editors)
    return {
        "judged": facts.figures.get("success") is not None,
        "judge": judge_words(mapping(facts.figures.get("judge"))),
        **chart,
        "table": figures_table(editors),
        "by_type": _by_type_table(facts.figures, editors),
        "no_op": any(is_number(some.get("no_op")) for some in editors.values()),
        "paired": paired_rows(mapping(facts.figures.get("paired"))),
    }


def editors_of(found: Row) -> dict[str, Row]:
    """The trained editor, then its baselines, by name."""
    baselines = mapping(found.get("baselines"))
    others = {editor_name(name): some for name, some in baselines.items() if mapping(some).get("n")}
    return {EDITOR: found, **others}


def _chart(editors: Mapping[str, Row]) -> Section:
    """By edit type: success where there is an oracle, else CLIP direction."""
    value = "success" if editors[EDITOR].get("success") is not None else "clip_direction"
    title, words = {
        "success": ("Success by edit type", "share of held-out edits that succeed"),
        "clip_direction": ("CLIP direction by edit type", "CLIP direction similarity"),
    }[value]
    shown = {name: some for name, some in editors.items() if is_number(some.get(value))}
    shown = dict(list(shown.items())[: len(MARKS)])
    series = {name: {**_types(some), ALL: some} for name, some in shown.items()}
    svg = charts.by_type_chart(series, value, title, words, share=is_share(value)) if series else None
    left_out = len(editors) - len(shown) if len(shown) == len(MARKS) else 0
    return {"svg": svg, "title": title, "legend": legend(list(series)), "editors_left_out": left_out}


def _types(some: Row) -> Row:
    return dict(list(mapping(some.get("by_type")).items())[:MOST_TYPES])


def figures_table(editors: Mapping[str, Row]) -> Section:
    """A row per editor, a column per figure that one of them has."""
    columns = headings_of(*editors.values())
    rows = [
        {"name": name, "n": some["n"], "cells": [cell(some, column) for column in columns]}
        for name, some in editors.items()
    ]
    return {"columns": list(columns.values()), "rows": rows}


def _by_type_table(found: Row, editors: Mapping[str, Row]) -> Section | None:
    """A row per edit type: the editor's figures, then the success of every baseline."""
    kinds = _types(found)
    if not kinds:
        return None
    columns = headings_of(*kinds.values())
    others = {name: some for name, some in editors.items() if name != EDITOR and is_number(some.get("success"))}
    rows = [
        {
            "name": kind,
            "n": some["n"],
            "cells": [cell(some, column) for column in columns]
            + [cell({**_types(other), ALL: other}.get(kind), "success") for other in others.values()],
        }
        for kind, some in {**kinds, ALL: found}.items()
    ]
    return {"columns": [*columns.values(), *(f"{name}: success" for name in others)], "rows": rows}


def judge_words(judge: Row) -> str | None:
    """Which CLIP judges, and what to think of it; None where the evaluation does not say."""
    if not judge.get("model"):
        return None
    if judge.get("same_as_filter"):
        return (
            f"The CLIP that judges, {judge['model']}, is the one that filtered the training pairs. "
            "That flatters the CLIP figures: the editor learned from pairs chosen to please this very model."
        )
    told = f"The CLIP figures are judged by {judge['model']}"
    return f"{told}, not by the one that filtered the training pairs" + (
        f" ({judge['filter']})." if judge.get("filter") else "."
    )


def paired_rows(paired: Row) -> list[Section]:
    """The editor against each baseline on the same edits."""
    rows = []
    for name, found in paired.items():
        some = mapping(found)
        if not some.get("n"):
            continue
        rows.append(
            {
                "name": editor_name(name),
                "n": some["n"],
                "won": "–" if some.get("won") is None else some["won"],
                "lost": "–" if some.get("lost") is None else some["lost"],
                "p": p_value(some["p"]) if is_number(some.get("p")) else "–",
                **{key: signed(some[key]) if is_number(some.get(key)) else "" for key in ("difference", "low", "high")},
            }
        )
    return rows


logger = logging.getLogger(__name__)


NUM_GRIDS = 6
MOST_SCALES = 12
GRID_BYTES = 3_500_000


def guidance(facts: RunFacts) -> Section:
    """The sweep of the image guidance, and the curves of whatever was measured beside it."""
    curve = [mapping(point) for point in facts.figures.get("curve") or ()]
    curves = curves_of(facts.figures)
    svg, rates = tradeoff_chart(curves), charts.rates_chart(curve)
    if svg is None and rates is None:
        return {"missing": "The image guidance was not swept yet."}
    shown = usable(curves)
    return {
        "svg": svg,
        "legend": legend(list(shown)) if len(shown) > 1 else None,
        "rates": rates,
        "table": points_table(curves),
        "n": max((int(point.get("n") or 0) for some in curves.values() for point in some), default=0),
        "left_out": len(curves) - len(shown),
    }


def curves_of(found: Row) -> dict[str, Sequence[Row]]:
    """Every curve of an evaluation by its name, the trained editor's own first."""
    own, others = found.get("curve") or [], mapping(found.get("curves"))
    named = {editor_name(name): points for name, points in others.items() if points}
    if own and own not in named.values():
        named = {EDITOR: own, **named}
    return named


def points_table(curves: Mapping[str, Sequence[Row]]) -> Section:
    """Every point in figures, for those who do not see the chart or want to copy it."""
    points = [(name, point) for name, curve in curves.items() for point in curve]
    columns = headings_of(*(point for _, point in points))
    rows = []
    for name, point in points:
        words, value = knob_of(point)
        cells = [cell(point, column) for column in columns]
        rows.append({"name": name, "knob": f"{words} {value:g}" if value is not None else "–", "cells": cells})
    return {"columns": list(columns.values()), "rows": rows}


def grids(facts: RunFacts) -> Section:
    """Text guidance × image guidance of a few held-out inputs."""
    if facts.grids is None:
        return {"missing": "No guidance grids were made."}
    try:
        rows = _read_narrow(facts.grids)
    except UNREADABLE as error:
        logger.warning("left the guidance grids out of the report: %s", error)
        return {"missing": "The guidance grids cannot be read (evaluation/grids.parquet)."}
    cases = list(dict.fromkeys(row["case"] for row in rows))[:NUM_GRIDS]
    album = Album(GRID_BYTES)
    found = [_grid([row for row in rows if row["case"] == case], album) for case in cases]
    whole = [grid for grid in found if grid]
    return {"grids": whole, "left_out": album.num_left_out} if whole else {"missing": "The guidance grids are empty."}


def _read_narrow(file: Path) -> list[Row]:
    columns = ["case", "guidance_scale", "image_guidance_scale", "edit_prompt"]
    table = pq.read_table(file, columns=columns).to_pylist()
    rows = [row | {"file": file, "index": index} for index, row in enumerate(table)]
    return [row for row in rows if is_number(row["guidance_scale"]) and is_number(row["image_guidance_scale"])]


def _grid(rows: Sequence[Row], album: Album) -> Section | None:
    """One input's table: a row per text guidance, a column per image guidance."""
    across = sorted({float(row["image_guidance_scale"]) for row in rows})[:MOST_SCALES]
    down = sorted({float(row["guidance_scale"]) for row in rows})[:MOST_SCALES]
    shown = [row for row in rows if row["image_guidance_scale"] in across and row["guidance_scale"] in down]
    if not shown:
        return None
    original = read_pictures(shown[:1], ("original_image",))[0]
    cells = {}
    for row, pictures in zip(shown, read_pictures(shown, ("edited_image",)), strict=True):
        if pictures and album.takes(*pictures):
            place = (float(row["guidance_scale"]), float(row["image_guidance_scale"]))
            cells[place] = pictures[0].saying(f"Text guidance {place[0]:g}, image guidance {place[1]:g}")
    if not cells:
        return None
    return {
        "instruction": clipped(shown[0]["edit_prompt"]),
        "original": original[0].saying("Input") if original and album.takes(*original) else None,
        "across": [f"{scale:g}" for scale in across],
        "rows": [{"scale": f"{one:g}", "cells": [cells.get((one, other)) for other in across]} for one in down],
    }


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
