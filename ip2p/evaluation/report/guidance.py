"""How the editor's two guidance scales trade what is kept for what is changed: curves, and grids of pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ip2p.evaluation.report import figures
from ip2p.evaluation.report.charts import legend
from ip2p.evaluation.report.pictures import Album, read_pictures
from ip2p.evaluation.report.reading import UNREADABLE, Row, RunFacts
from ip2p.evaluation.report.tradeoff import knob_of, tradeoff_chart, usable
from ip2p.evaluation.report.wording import (
    EDITOR,
    cell,
    clipped,
    editor_name,
    is_number,
    mapping,
    measures_of,
    shares_of,
)

logger = logging.getLogger(__name__)

Section = dict[str, Any]

NUM_GRIDS = 6
MOST_SCALES = 12
GRID_BYTES = 3_500_000


def guidance(facts: RunFacts) -> Section:
    """The sweep of the image guidance, and the curves of whatever was measured beside it."""
    curve = [mapping(point) for point in facts.figures.get("curve") or ()]
    curves = curves_of(facts.figures)
    svg, rates = tradeoff_chart(curves), figures.rates_chart(curve)
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
    every = [point for _, point in points]
    columns = {**shares_of(*every), **measures_of(*every)}
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
