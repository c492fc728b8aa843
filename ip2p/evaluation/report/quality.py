"""How good the trained editor is: every figure beside its baselines, by edit type, with paired tests and who judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ip2p.evaluation.report import figures
from ip2p.evaluation.report.charts import MARKS, legend
from ip2p.evaluation.report.making import MOST_TYPES
from ip2p.evaluation.report.reading import Row, RunFacts
from ip2p.evaluation.report.wording import (
    EDITOR,
    SHARES,
    cell,
    editor_name,
    is_number,
    mapping,
    measures_of,
    p_value,
    shares_of,
    signed,
)

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
    svg = figures.by_type_chart(series, value, title, words, share=value in SHARES) if series else None
    left_out = len(editors) - len(shown) if len(shown) == len(MARKS) else 0
    return {"svg": svg, "title": title, "legend": legend(list(series)), "editors_left_out": left_out}


def _types(some: Row) -> Row:
    return dict(list(mapping(some.get("by_type")).items())[:MOST_TYPES])


def figures_table(editors: Mapping[str, Row]) -> Section:
    """A row per editor, a column per figure that one of them has."""
    columns = {**shares_of(*editors.values()), **measures_of(*editors.values())}
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
    columns = {**shares_of(*kinds.values()), **measures_of(*kinds.values())}
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
