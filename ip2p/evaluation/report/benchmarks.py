"""A benchmark on one page: each protocol's table, tests against the first editor, curves, the edits side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ip2p import store
from ip2p.evaluation.protocols import Column, known_columns
from ip2p.evaluation.report import choosing
from ip2p.evaluation.report.charts import legend
from ip2p.evaluation.report.guidance import points_table
from ip2p.evaluation.report.overview import setting_rows
from ip2p.evaluation.report.pictures import Album, Picture, read_pictures
from ip2p.evaluation.report.reading import Row
from ip2p.evaluation.report.sheets import sheet
from ip2p.evaluation.report.tradeoff import tradeoff_chart, usable
from ip2p.evaluation.report.wording import cell, clipped, editor_name, is_number, mapping, signed

Section = dict[str, Any]

NUM_SHOWN, MOST_EDITORS = 120, 6
SIDE_BYTES = 12_000_000
PROTOCOLS = {
    "magicbrush": "MagicBrush's protocol: against the target, edit by edit, and at the end of each session",
    "emu_edit": "Emu Edit's protocol: against the input and the captions, which rewards doing nothing",
    "curve": "the paper's curve: what is kept against what is changed, over the image guidance",
    "pictures": "pictures with instructions, by all that they have a truth for",
}


def describe_page(folder: Path) -> dict[str, Any]:
    """What the template lays out. ValueError where the folder holds no benchmark."""
    try:
        found = mapping(store.read_json(folder / "figures.json"))
        protocol, editors = found["protocol"], mapping(found["editors"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no finished benchmark. Run `ip2p benchmark` with --out {folder}.") from error
    columns = known_columns(protocol, editors)
    curves = mapping(found.get("curves"))
    drawn = usable(curves)
    return {
        "name": folder.resolve().name,
        "protocol": PROTOCOLS[protocol],
        "source": mapping(found.get("settings")).get("source", ""),
        "n": found["n"],
        "models": list(mapping(found.get("models"))),
        "single": _table(editors, "single", columns),
        "final": _table(editors, "final", columns),
        "against": _against(mapping(found.get("against_first")), columns),
        "columns": [column.heading for column in columns],
        "by_type": _by_type(editors, mapping(found.get("models")), columns),
        "curves": tradeoff_chart(curves),
        "curves_legend": legend(list(drawn)),
        "points": points_table(curves),
        "pictures": _pictures(folder, [*mapping(found.get("models")), *_strongest(editors)], columns),
        "settings": setting_rows(mapping(found.get("settings"))),
    }


def _table(editors: Mapping[str, Row], part: str, columns: Sequence[Column]) -> Section | None:
    """A row per editor; None where no editor has such figures."""
    there = {name: mapping(found.get(part)) for name, found in editors.items() if mapping(found.get(part)).get("n")}
    rows = [
        {"name": editor_name(name), "n": some["n"], "cells": [cell(some, column.name) for column in columns]}
        for name, some in there.items()
    ]
    return {"columns": [column.heading for column in columns], "rows": rows} if rows else None


def _by_type(editors: Mapping[str, Row], models: Mapping[str, str], columns: Sequence[Column]) -> list[Section]:
    """A table per model, where there are several types."""
    tables = []
    for name in models:
        kinds = mapping(mapping(mapping(editors.get(name)).get("single")).get("by_type"))
        if len(kinds) > 1:
            rows = [
                {"name": kind, "n": some["n"], "cells": [cell(some, column.name) for column in columns]}
                for kind, some in kinds.items()
            ]
            tables.append({"name": name, "table": {"columns": [column.heading for column in columns], "rows": rows}})
    return tables


def _against(found: Mapping[str, Row], columns: Sequence[Column]) -> list[Section]:
    """The others' mean gains over the first, on the same edits, with their intervals."""
    return [
        {"name": name, "n": gains["n"], "cells": [_gain(gains, column.name) for column in columns]}
        for name, gains in found.items()
    ]


def _gain(gains: Row, name: str) -> Section | None:
    bounds = list(gains.get(f"{name}_interval") or ())
    if not is_number(gains.get(name)) or len(bounds) != 2:
        return None
    return {"value": signed(gains[name]), "interval": f"{signed(bounds[0])} to {signed(bounds[1])}"}


def _strongest(editors: Mapping[str, Row]) -> list[str]:
    """SDEdit at the middle of its strengths, to be shown beside the models."""
    names = [name for name in editors if name.startswith("sdedit ")]
    return names[len(names) // 2 : len(names) // 2 + 1]


def _pictures(folder: Path, names: Sequence[str], columns: Sequence[Column]) -> Section | None:
    """Inputs, targets and outputs side by side, in turns from every edit type."""
    shown = list(names)[:MOST_EDITORS]
    rows = {name: _rows_of(folder, name) for name in shown}
    cases = set.intersection(*(set(some) for some in rows.values())) if rows else set()
    first = next(iter(rows.values()), {})
    chosen = choosing.take_turns([first[case] for case in sorted(cases)], lambda row: row["edit_type"], NUM_SHOWN)
    inputs = read_pictures(
        [{"file": folder / "cases.parquet", "index": row["case"]} for row in chosen], ("original_image",)
    )
    outputs = [read_pictures([some[row["case"]] for row in chosen], ("edited_image",)) for some in rows.values()]
    album, cards = Album(SIDE_BYTES), []
    for row, before, *after in zip(chosen, inputs, *outputs, strict=True):
        whole = [pictures[0] for pictures in (before, *after) if pictures]
        if len(whole) == len(shown) + 1 and album.takes(*whole):
            measured = [rows[name][row["case"]] for name in shown]
            made = [_output(*each, columns[:2]) for each in zip(shown, whole[1:], measured, strict=True)]
            cards.append(_card(row, whole[0], made))
    if not cards:
        return None
    found = sheet("edits", cards, {"type": ("Edit type", {})})
    return {**found, "total": len(cases), "left_out": album.num_left_out}


def _rows_of(folder: Path, name: str) -> dict[int, Row]:
    """An editor's figures by case, and where its pictures lie."""
    model, _, strength = name.partition(" ")
    kind = "sweep" if strength else "edit"
    rows: dict[int, Row] = {}
    for file in sorted((folder / "parts").glob(f"{model}-{kind}-{f's{strength}' if strength else ''}*.parquet")):
        for index, row in enumerate(pq.read_table(file).to_pylist()):
            if row["model"] == model:
                rows[row["case"]] = row | {"file": folder / "edits" / file.name, "index": index}
    return rows


def _output(name: str, picture: Picture, row: Row, columns: Sequence[Column]) -> Section:
    return {
        "name": editor_name(name),
        "picture": picture.saying(f"Output of {name}: {clipped(row['edit_prompt'])}"),
        "seen": None,
        "scores": [(column.title, row[column.name]) for column in columns if is_number(row.get(column.name))],
    }


def _card(row: Row, before: Picture, outputs: list[Section]) -> Section:
    return {
        "before": before.saying(f"Input: {clipped(row.get('original_prompt')) or 'a picture'}"),
        "outputs": outputs,
        "instruction": clipped(row["edit_prompt"]),
        "kind": row["edit_type"],
        "marks": {"type": row["edit_type"] or ""},
        "scores": {},
        "names": {},
    }
