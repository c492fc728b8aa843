"""Several runs on one page: figures, tests, curves, pictures, cost, settings that differ. Never imports torch."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ip2p.config import PipelineConfig, to_dict
from ip2p.evaluation.metrics import paired
from ip2p.evaluation.report import cost, figures, guidance
from ip2p.evaluation.report.charts import MARKS, legend
from ip2p.evaluation.report.overview import setting_rows
from ip2p.evaluation.report.quality import figures_table, judge_words, paired_rows
from ip2p.evaluation.report.reading import UNREADABLE, Row, RunFacts, read_run
from ip2p.evaluation.report.sidebyside import case_hashes, side_by_side
from ip2p.evaluation.report.tradeoff import tradeoff_chart, usable
from ip2p.evaluation.report.wording import count, is_number, mapping, percent, percents
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
        "points": guidance.points_table(curves),
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
    chart = figures.by_type_chart(series, "success", "Success by edit type", "share of held-out edits that succeed")
    return {"by_type": chart if series else None, "types_legend": legend(list(series))}


def _judges(shown: Mapping[str, RunFacts]) -> list[tuple[str, str]]:
    """Who judged which runs; those that say the same together."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, each in shown.items():
        names[judge_words(mapping(each.figures.get("judge"))) or ""].append(name)
    return [(", ".join(some), words) for words, some in names.items() if words]


def _costs(shown: Mapping[str, RunFacts]) -> list[tuple[str, list[str]]]:
    told = [cost.compared(each) for each in shown.values()]
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
