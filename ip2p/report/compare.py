"""Several runs on one page: figures, tests, curves, pictures, cost, settings that differ. Never imports torch."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import PipelineConfig, to_dict
from ip2p.evaluation.benchmark import PROTOCOLS, known_columns
from ip2p.evaluation.measures import Column
from ip2p.evaluation.metrics import paired
from ip2p.report import charts, data, editor, facts
from ip2p.report.charts import tradeoff_chart, usable
from ip2p.report.editor import figures_table, judge_words, paired_rows, points_table, setting_rows
from ip2p.report.facts import UNREADABLE, Row, RunFacts, read_run
from ip2p.report.format import cell, clipped, count, editor_name, is_number, mapping, percent, percents, signed
from ip2p.report.pictures import Album, Picture, read_pictures
from ip2p.report.sheets import case_hashes, sheet, side_by_side
from ip2p.report.svg import MARKS, legend
from ip2p.store import RunFolder

logger = logging.getLogger(__name__)

MADE = {"pairs": "Training pairs", "accepted": "Accepted candidates", "right": "Accepted that are right"}
"""What the editors were made from."""

Cell = dict[str, str] | None
"""A figure and what stands small beside it."""


def describe_comparison(configs: Sequence[PipelineConfig]) -> dict[str, Any]:
    """What the template lays out. ValueError for fewer than two runs, or for one that was not evaluated."""
    if len(configs) < 2:
        raise ValueError(f"a comparison takes two runs or more, got {len(configs)}. Give their folders.")
    facts = [read_run(config) for config in configs]
    for each, config in zip(facts, configs, strict=True):
        if not each.figures.get("n"):
            raise ValueError(f"{config.out} was not evaluated. Run `ip2p evaluate {config.out}` first.")
    names = _names(configs)
    shown = dict(zip(names, facts, strict=True))
    curves = {name: each.figures.get("curve") or [] for name, each in shown.items()}
    drawn = usable(curves)
    return {
        "names": names,
        "table": _table(shown),
        "judges": _judges(shown),
        "paired": _paired(names, configs),
        "curves": tradeoff_chart(curves),
        "curves_legend": legend(list(drawn)),
        "points": editor.points_table(curves),
        **_by_type(shown),
        "pictures": side_by_side(shown),
        "cost": _costs(shown),
        "settings": _settings(configs),
    }


def _table(shown: Mapping[str, RunFacts]) -> dict[str, Any]:
    """The figures of every run, and what its editor was made from."""
    table = figures_table({name: each.figures for name, each in shown.items()})
    sources = [_made_from(each) for each in shown.values()]
    told = [name for name in MADE if any(source[name] for source in sources)]
    rows = [
        {**row, "cells": [*row["cells"], *(source[name] for name in told)]}
        for row, source in zip(table["rows"], sources, strict=True)
    ]
    return {"columns": [*table["columns"], *(MADE[name] for name in told)], "rows": rows}


def _made_from(facts: RunFacts) -> dict[str, dict[str, str] | None]:
    """The dataset that a run trained on, as far as its summary tells."""
    training, rendering, dataset = (mapping(facts.summary.get(name)) for name in ("training", "rendering", "dataset"))
    pairs, asked, accepted = training.get("samples"), rendering.get("candidates"), rendering.get("accepted")
    right = dataset.get("oracle_precision")
    bounds = dataset.get("oracle_precision_interval") or ()
    return {
        "pairs": {"value": count(int(pairs)), "interval": ""} if is_number(pairs) else None,
        "accepted": {"value": percent(accepted / asked), "interval": f"of {count(asked)}"}
        if asked and is_number(accepted)
        else None,
        "right": {"value": percent(right), "interval": percents(*bounds) if len(bounds) == 2 else ""}
        if is_number(right)
        else None,
    }


def _by_type(shown: Mapping[str, RunFacts]) -> dict[str, Any]:
    judged = {name: each.figures for name, each in shown.items() if is_number(each.figures.get("success"))}
    some = dict(list(judged.items())[: len(MARKS)])
    series = {name: {**mapping(found.get("by_type")), "all types": found} for name, found in some.items()}
    chart = charts.by_type_chart(series, "success", "Success by edit type", "share of held-out edits that succeed")
    return {"by_type": chart if series else None, "types_legend": legend(list(series))}


def _judges(shown: Mapping[str, RunFacts]) -> list[tuple[str, str]]:
    """Who judged which runs; those that say the same together."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, each in shown.items():
        names[judge_words(mapping(each.figures.get("judge"))) or ""].append(name)
    return [(", ".join(some), words) for words, some in names.items() if words]


def _costs(shown: Mapping[str, RunFacts]) -> list[tuple[str, list[str]]]:
    told = [data.compared(each) for each in shown.values()]
    titles = dict.fromkeys(title for each in told for title in each)
    return [(title, [str(each.get(title, "–")) for each in told]) for title in titles]


def _names(configs: Sequence[PipelineConfig]) -> list[str]:
    """Of the folders, with as many parents as tell them apart."""
    paths = [config.out.resolve() for config in configs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, 1)]


def _paired(names: Sequence[str], configs: Sequence[PipelineConfig]) -> list[dict[str, Any]]:
    first, *others = (_edits_or_none(config) for config in configs)
    return paired_rows({name: paired(first, some) for name, some in zip(names[1:], others, strict=True)})


def _edits_or_none(config: PipelineConfig) -> list[Row]:
    try:
        return _edits(config)
    except UNREADABLE as error:
        logger.warning("%s is not compared edit by edit: %s", config.out, error)
        return []


def _edits(config: PipelineConfig) -> list[Row]:
    """The trained editor's held-out edits; `case` is their picture, words and seed."""
    folder = RunFolder(config.out).evaluation
    pictures = case_hashes(folder / "cases.parquet")
    return [
        row | {"case": (pictures[row["case"]], row["edit_prompt"], row.get("seed"))}
        for row in pq.read_table(folder / "scores.parquet").to_pylist()
        if row["model"] == "model" and row["kind"] == "edit"
    ]


def _settings(configs: Sequence[PipelineConfig]) -> list[tuple[str, list[str]]]:
    """Those that differ between the runs."""
    told = [dict(setting_rows(to_dict(config))) for config in configs]
    keys = dict.fromkeys(key for each in told for key in each if key != "out")
    rows = [(key, [each.get(key, "–") for each in told]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def default_page(configs: Sequence[PipelineConfig]) -> Path:
    """Where the page goes if nothing else is said: beside the first run."""
    return configs[0].out.parent / ("comparison-" + "-".join(config.out.name for config in configs) + ".html")


Section = dict[str, Any]

NUM_SHOWN, MOST_EDITORS = 120, 6
SIDE_BYTES = 12_000_000


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
        "protocol": PROTOCOLS[protocol].words,
        "source": mapping(found.get("settings")).get("source", ""),
        "n": found["n"],
        "models": list(mapping(found.get("models"))),
        "single": _benchmark_table(editors, "single", columns),
        "final": _benchmark_table(editors, "final", columns),
        "against": _against(mapping(found.get("against_first")), columns),
        "columns": [column.heading for column in columns],
        "by_type": _benchmark_by_type(editors, mapping(found.get("models")), columns),
        "curves": tradeoff_chart(curves),
        "curves_legend": legend(list(drawn)),
        "points": points_table(curves),
        "pictures": _pictures(folder, [*mapping(found.get("models")), *_strongest(editors)], columns),
        "settings": setting_rows(mapping(found.get("settings"))),
    }


def _benchmark_table(editors: Mapping[str, Row], part: str, columns: Sequence[Column]) -> Section | None:
    """A row per editor; None where no editor has such figures."""
    there = {name: mapping(found.get(part)) for name, found in editors.items() if mapping(found.get(part)).get("n")}
    rows = [
        {"name": editor_name(name), "n": some["n"], "cells": [cell(some, column.name) for column in columns]}
        for name, some in there.items()
    ]
    return {"columns": [column.heading for column in columns], "rows": rows} if rows else None


def _benchmark_by_type(
    editors: Mapping[str, Row], models: Mapping[str, str], columns: Sequence[Column]
) -> list[Section]:
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
    chosen = facts.take_turns([first[case] for case in sorted(cases)], lambda row: row["edit_type"], NUM_SHOWN)
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
