"""Several runs on one page: figures, paired tests, curves, settings that differ. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup

from ip2p.config import PipelineConfig, to_dict
from ip2p.evaluation.intervals import bootstrap_interval
from ip2p.evaluation.report import figures
from ip2p.evaluation.report.charts import Drawing, Frame, padded
from ip2p.evaluation.report.reading import Row, RunFacts, read_run
from ip2p.evaluation.report.sections import setting_rows
from ip2p.store import RunFolder

COLUMNS = {
    "success": "success",
    "done": "done",
    "kept": "kept",
    "clip_direction": "CLIP direction",
    "clip_image": "CLIP image",
}
MADE = {"pairs": "training pairs", "accepted": "accepted candidates", "right": "accepted that are right"}
"""What the editors were made from."""
SHARES = ("success", "done", "kept")
MOST_SERIES = 6
"""A chart has so many colours."""

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
    columns = [name for name in COLUMNS if any(each.figures.get(name) is not None for each in facts)]
    sources = [_made_from(each) for each in facts]
    told = [name for name in MADE if any(source[name] for source in sources)]
    curves = {name: each.figures.get("curve") or [] for name, each in shown.items()}
    judged = {name: each for name, each in shown.items() if each.figures.get("success") is not None}
    some = list(judged.items())[:MOST_SERIES]
    series = {name: {**each.figures["by_type"], "all types": each.figures} for name, each in some}
    title = "Success by edit type"
    return {
        "names": names,
        "columns": [*(COLUMNS[name] for name in columns), *(MADE[name] for name in told)],
        "rows": [
            _figures(name, each, columns, [source[column] for column in told])
            for (name, each), source in zip(shown.items(), sources, strict=True)
        ],
        "paired": _paired(names, configs),
        "curves": curves_chart({name: curve for name, curve in curves.items() if curve}),
        "curve_names": [name for name, curve in curves.items() if curve][:MOST_SERIES],
        "by_type": figures.by_type_chart(series, "success", title, "share of held-out edits that succeed"),
        "type_names": list(series),
        "settings": _settings(configs),
    }


def _names(configs: Sequence[PipelineConfig]) -> list[str]:
    """Of the folders, with as many parents as tell them apart."""
    paths = [config.out.resolve() for config in configs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, 1)]


def _figures(name: str, facts: RunFacts, columns: Sequence[str], made_from: Sequence[Cell]) -> dict[str, Any]:
    cells = [_cell(facts.figures, column) for column in columns]
    return {"name": name, "n": facts.figures["n"], "cells": [*cells, *made_from]}


def _made_from(facts: RunFacts) -> dict[str, Cell]:
    """The dataset that a run trained on, as far as its summary tells."""
    training, rendering, dataset = (facts.summary.get(stage) or {} for stage in ("training", "rendering", "dataset"))
    pairs, asked = training.get("samples"), rendering.get("candidates")
    accepted = f"{rendering['accepted'] / asked:.1%}" if asked and "accepted" in rendering else None
    return {
        "pairs": None if pairs is None else {"value": f"{pairs:,}", "note": ""},
        "accepted": {"value": accepted, "note": f"of {asked:,}"} if accepted else None,
        "right": _cell(dataset, "oracle_precision", "{:.1%}"),
    }


def _cell(found: Row, name: str, form: str = "") -> Cell:
    if found.get(name) is None:
        return None
    form = form or ("{:.1%}" if name in SHARES else "{:.3f}")
    low, high = found[f"{name}_interval"]
    return {"value": form.format(found[name]), "note": f"{form.format(low)}–{form.format(high)}"}


def _paired(names: Sequence[str], configs: Sequence[PipelineConfig]) -> list[dict[str, Any]]:
    first, *others = (_edits(config) for config in configs)
    return [
        _against(name, [(first[key], some[key]) for key in first if key in some])
        for name, some in zip(names[1:], others, strict=True)
        if first.keys() & some.keys()
    ]


def _edits(config: PipelineConfig) -> dict[tuple[Any, ...], Row]:
    """The trained editor's held-out edits, by picture, words and seed."""
    folder = RunFolder(config.out).evaluation
    scores = pq.read_table(folder / "scores.parquet").to_pylist()
    pictures = pq.read_table(folder / "cases.parquet", columns=["original_image"])["original_image"].to_pylist()
    return {
        (pictures[row["case"]]["bytes"], row["edit_prompt"], row.get("seed")): row
        for row in scores
        if row["model"] == "model" and not row["sweep"]
    }


def _against(name: str, both: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    lost = sum(bool(one["success"]) and not other["success"] for one, other in both)
    won = sum(bool(other["success"]) and not one["success"] for one, other in both)
    judged = all(one["success"] is not None and other["success"] is not None for one, other in both)
    steps = np.array([other["clip_direction"] - one["clip_direction"] for one, other in both], np.float64)
    steps = steps[np.isfinite(steps)]
    mean = float(steps.mean()) if steps.size else math.nan
    spread = dict(zip(("difference", "low", "high"), (mean, *bootstrap_interval(steps)), strict=True))
    return {
        "name": name,
        "n": len(both),
        "lost": lost if judged else "–",
        "won": won if judged else "–",
        "p": f"{mcnemar(lost, won):.3g}" if judged else "–",
        **{key: f"{value:+.3f}" if math.isfinite(value) else "–" for key, value in spread.items()},
    }


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p of as uneven a split or more, were both alike; 1 where they never differ."""
    from scipy.stats import binomtest

    return float(binomtest(won, lost + won, 0.5).pvalue) if lost + won else 1.0


def curves_chart(curves: dict[str, Sequence[Row]]) -> Markup | None:
    """Each run's sweep of the image guidance, with intervals both ways; None where there is none."""
    points = [point for curve in curves.values() for point in curve if point.get("clip_direction") is not None]
    if not points:
        return None
    xs, ys = (
        [each for point in points for each in point[f"{name}_interval"]] for name in ("clip_direction", "clip_image")
    )
    frame = Frame(padded(xs, 0.08), padded(ys, 0.1), width=560, height=320)
    drawing = Drawing(frame, "CLIP image similarity against direction, by run", ", ".join(curves))
    drawing.axes("CLIP direction similarity (edit follows the text) →", "CLIP image similarity →")
    for number, (name, curve) in enumerate(list(curves.items())[:MOST_SERIES]):
        places = [(point["clip_direction"], point["clip_image"]) for point in curve]
        for point, (x, y) in zip(curve, places, strict=True):
            (left, right), (low, high) = point["clip_direction_interval"], point["clip_image_interval"]
            drawing.segment((left, y), (right, y), f"interval s{number}")
            drawing.segment((x, low), (x, high), f"interval s{number}")
        drawing.line(places, f"series s{number}")
        for point, (x, y) in zip(curve, places, strict=True):
            scale = f"{point['image_guidance_scale']:g}"
            drawing.mark(x, y, f"mark s{number}", f"{name}, image guidance {scale}: {x:.3f}, {y:.3f}", number % 3)
            drawing.label(x, y, scale, "point-label", shift=(8, -8))
    return drawing.svg()


def _settings(configs: Sequence[PipelineConfig]) -> list[tuple[str, list[str]]]:
    """Those that differ between the runs."""
    told = [dict(setting_rows(to_dict(config))) for config in configs]
    keys = dict.fromkeys(key for each in told for key in each if key != "out")
    rows = [(key, [each.get(key, "–") for each in told]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def default_page(configs: Sequence[PipelineConfig]) -> Path:
    """Where the page goes if nothing else is said: beside the first run."""
    return configs[0].out.parent / ("comparison-" + "-".join(config.out.name for config in configs) + ".html")
