"""The editors of a benchmark on one page: its figures, the judge's if there was one, and the edits side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ip2p import store
from ip2p.evaluation.benchmark import known_columns
from ip2p.evaluation.benchmarks import benchmarks
from ip2p.report.charts import tradeoff_chart
from ip2p.report.editor import figures_table, points_table, setting_rows
from ip2p.report.facts import (
    Figures,
    HeldOutEdit,
    Json,
    count_of,
    is_number,
    mapping,
    read_curves,
    read_figures,
    sequence,
    take_turns,
)
from ip2p.report.format import Cell, Line, Table, difference_cell, editor_name, score
from ip2p.report.reading import read_part
from ip2p.report.sheets import MOST_EDITORS, Sheet, side_by_side
from ip2p.report.svg import Chart

NUM_OF_BENCHMARK = 120
"""Edits that the page shows."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What the page of a benchmark lays out."""

    name: str
    protocol: str
    source: str
    n: int
    models: list[str]
    single: Table | None
    final: Table | None
    """Figures of the last edits of sessions."""
    published: Table | None
    """Figures by the benchmark's own rules."""
    judge: str
    """Who gave the scores; empty if nobody was asked."""
    against: Table | None
    by_type: list[tuple[str, Table]]
    curves: Chart | None
    points: Table
    pictures: Sheet | None
    settings: list[tuple[str, str]]


def describe_page(folder: Path) -> Benchmark:
    """Reads a benchmark. ValueError if the folder holds no finished one."""
    try:
        raw = mapping(store.read_json(folder / "figures.json"))
        protocol = str(raw["protocol"])
        raw_editors = {name: mapping(parts) for name, parts in mapping(raw["editors"]).items()}
        editors = {
            name: {part: mapping(figures) for part, figures in parts.items()} for name, parts in raw_editors.items()
        }
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no finished benchmark. Run `ip2p benchmark` with --out {folder}.") from error
    columns, models = known_columns(protocol, editors), list(mapping(raw.get("models")))
    headings = {column.name: column.heading for column in columns}
    single = {name: read_figures(part.get("single")) for name, part in editors.items()}
    final = {name: read_figures(part.get("final")) for name, part in editors.items()}
    by_type = {name: single[name].by_type for name in models if len(single[name].by_type) > 1}
    curves, settings = read_curves(raw.get("curves")), mapping(raw.get("settings"))
    return Benchmark(
        name=folder.resolve().name,
        protocol=benchmarks()[protocol].words,
        source=str(settings.get("source", "")),
        n=count_of(raw.get("n")),
        models=models,
        single=_editors_table(single, headings),
        final=_editors_table(final, headings),
        published=_published_table({name: sequence(part.get("published")) for name, part in raw_editors.items()}),
        judge=_judge_words(mapping(raw.get("judge"))),
        against=_differences_table(mapping(raw.get("against_first")), headings),
        by_type=[(name, figures_table(kinds, headings)) for name, kinds in by_type.items()],
        curves=tradeoff_chart(curves),
        points=points_table(curves),
        pictures=_pictures(
            folder, [*models, *_middle_strength(list(editors))], {column.name: column.title for column in columns[:2]}
        ),
        settings=setting_rows(settings.items()),
    )


def _editors_table(figures: Mapping[str, Figures], headings: Mapping[str, str]) -> Table | None:
    measured = {editor_name(name): measures for name, measures in figures.items() if measures.n}
    return figures_table(measured, headings) if measured else None


def _published_table(raw: Mapping[str, Sequence[object]]) -> Table | None:
    """Lists a benchmark's own figures, an editor per column; after ± the standard deviation over the repeats."""
    by_editor = {editor_name(name): [mapping(figure) for figure in rows] for name, rows in raw.items() if rows}
    lines = [
        Line(str(same[0].get("label")), count_of(same[0].get("n")), [_repeated_cell(figure) for figure in same])
        for same in zip(*by_editor.values(), strict=False)
        if same[0].get("is_headline")
    ]
    return Table(list(by_editor), lines) if lines else None


def _repeated_cell(figure: Json) -> Cell | None:
    value, deviation = figure.get("mean"), figure.get("sd")
    if not is_number(value):
        return None
    return Cell(score(value), f"± {score(deviation)}" if is_number(deviation) else "")


def _judge_words(judge: Json) -> str:
    """Names the judge, what the server called it and the questions; empty if there was none."""
    if not judge:
        return ""
    served = ", ".join(mapping(judge.get("served_as")))
    words = f"{judge.get('model')}{f', served as {served}' if served else ''}"
    return f"{words}; questions {str(judge.get('questions'))[:12]}, each asked {count_of(judge.get('repeats'))} times"


def _differences_table(raw: Json, headings: Mapping[str, str]) -> Table | None:
    """Lists the others' mean gains over the first, on the same edits, with their intervals."""
    gains = {name: read_figures(part) for name, part in raw.items()}
    lines = [
        Line(name, figures.n, [difference_cell(figures.get(column)) for column in headings])
        for name, figures in gains.items()
    ]
    return Table(list(headings.values()), lines) if lines else None


def _middle_strength(editors: Sequence[str]) -> list[str]:
    """Returns SDEdit at the middle of its strengths, to be shown beside the models."""
    names = [name for name in editors if name.startswith("sdedit ")]
    return names[len(names) // 2 : len(names) // 2 + 1]


def _pictures(folder: Path, names: Sequence[str], titles: Mapping[str, str]) -> Sheet | None:
    """Shows inputs and outputs side by side, in turns from every edit type."""
    edits = {editor_name(name): _edits_of(folder, name) for name in names[:MOST_EDITORS]}
    first = next(iter(edits.values()), {})
    shared = [edit for case, edit in sorted(first.items()) if all(case in other for other in edits.values())]
    chosen = take_turns(shared, lambda edit: edit.edit_type, NUM_OF_BENCHMARK)
    same = {name: [by_case[edit.case] for edit in chosen] for name, by_case in edits.items()}
    return side_by_side(same, folder / "cases.parquet", titles, len(shared)) if chosen else None


def _edits_of(folder: Path, name: str) -> dict[int, HeldOutEdit]:
    """Reads an editor's edits by case."""
    model, _, strength = name.partition(" ")
    kind = "sweep" if strength else "edit"
    files = sorted((folder / "parts").glob(f"{model}-{kind}-{f's{strength}' if strength else ''}*.parquet"))
    return {edit.case: edit for file in files for edit in read_part(folder, file.stem) if edit.model == model}
