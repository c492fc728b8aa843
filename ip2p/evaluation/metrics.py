"""From records of single edits to figures: shares with intervals, means with bands, overall and by edit type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ip2p.evaluation.intervals import bootstrap_interval, wilson_interval

Record = Mapping[str, Any]
Figures = dict[str, Any]

JUDGED = ("success", "done", "kept", "legible")
"""Columns that a domain fills; None where there is no domain."""
CLIP = ("clip_original", "clip_edited", "clip_direction", "clip_image")


def summarise(records: Sequence[Record], edit_types: Sequence[str] = ()) -> Figures:
    """Figures over all records, and under `by_type` over those of each edit type."""
    figures = {"n": len(records), **shares(records, JUDGED), **means(records, CLIP)}
    by_type = {
        kind: [record for record in records if record["edit_type"] == kind] for kind in types_of(records, edit_types)
    }
    figures["by_type"] = {
        kind: {"n": len(some), **shares(some, JUDGED), **means(some, CLIP)} for kind, some in by_type.items()
    }
    return figures


def types_of(records: Iterable[Record], edit_types: Sequence[str] = ()) -> list[str]:
    """Edit types that occur, in the given order, then those that it does not name."""
    found = {str(record["edit_type"]) for record in records}
    return [kind for kind in edit_types if kind in found] + sorted(found.difference(edit_types))


def shares(records: Sequence[Record], columns: Sequence[str]) -> Figures:
    """Share of true values per column with its 95 % Wilson interval; None where nothing was judged."""
    figures: Figures = {}
    for column in columns:
        values = [bool(record[column]) for record in records if record.get(column) is not None]
        figures[column] = sum(values) / len(values) if values else None
        figures[f"{column}_interval"] = list(wilson_interval(sum(values), len(values))) if values else None
    return figures


def means(records: Sequence[Record], columns: Sequence[str]) -> Figures:
    """Mean per column with its 95 % bootstrap band; None where there are no finite values."""
    figures: Figures = {}
    for column in columns:
        values = [float(record[column]) for record in records if record.get(column) is not None]
        values = [value for value in values if math.isfinite(value)]
        figures[column] = sum(values) / len(values) if values else None
        figures[f"{column}_interval"] = list(bootstrap_interval(values)) if values else None
    return figures


def curve(records: Sequence[Record]) -> list[Figures]:
    """One point per image guidance scale, in rising order: what is kept against what is changed (paper, figure 8)."""
    scales = sorted({float(record["image_guidance_scale"]) for record in records})
    points = []
    for scale in scales:
        some = [record for record in records if record["image_guidance_scale"] == scale]
        points.append({"image_guidance_scale": scale, "n": len(some), **shares(some, JUDGED), **means(some, CLIP)})
    return points
