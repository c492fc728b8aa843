"""How good the trained editor is: figures beside its baselines, by edit type, with paired tests and who judged."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ip2p.report.charts import by_type_chart, knob_of, rates_chart, tradeoff_chart
from ip2p.report.data import num_accepted, precisions
from ip2p.report.facts import UNREADABLE, Evaluation, Figures, Json, Place, is_number, mapping, read_figure
from ip2p.report.format import (
    EDITOR,
    MOST_TYPES,
    Cell,
    Line,
    Table,
    cell,
    clipped,
    count,
    difference_cell,
    duration,
    editor_name,
    headings_of,
    is_share,
    p_value,
    percent,
    percents,
    score,
)
from ip2p.report.pictures import Album, Thumbnail, read_pictures
from ip2p.report.reading import RunFacts
from ip2p.report.svg import Chart

logger = logging.getLogger(__name__)

ALL = "all types"
NUM_GRIDS = 6
MOST_SCALES = 12
GRID_BYTES = 3_500_000
MOST_SIGNS = 2_000
"""Letters of a setting: a long list is cut."""


@dataclass(frozen=True, slots=True)
class PairedLine:
    """One editor against another on the same edits."""

    name: str
    n: str
    won: str
    lost: str
    p: str
    difference: Cell | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The trained editor and its baselines."""

    judged: bool
    """True if a domain judged the edits."""
    judge: str
    chart: Chart | None
    table: Table
    by_type: Table | None
    no_op: bool
    paired: list[PairedLine]


def quality(facts: RunFacts) -> Quality | str:
    """Shows the editor and its baselines: a chart by edit type, all figures, all figures by edit type, tests."""
    evaluation = facts.evaluation
    if not evaluation.editor.n:
        return evaluation.skipped or "The editor was not evaluated yet."
    editors = {EDITOR: evaluation.editor}
    editors |= {editor_name(name): figures for name, figures in evaluation.baselines.items()}
    return Quality(
        judged=evaluation.editor.get("success") is not None,
        judge=judge_words(evaluation.judge),
        chart=_chart(editors),
        table=figures_table(editors),
        by_type=_by_type_table(editors),
        no_op=any(figures.get("no_op") for figures in editors.values()),
        paired=paired_lines(evaluation.paired),
    )


def _chart(editors: Mapping[str, Figures]) -> Chart | None:
    """Draws success by edit type, or CLIP direction if there is no oracle."""
    judged = editors[EDITOR].get("success") is not None
    value, title, words = (
        ("success", "Success by edit type", "share of held-out edits that succeed")
        if judged
        else ("clip_direction", "CLIP direction by edit type", "CLIP direction similarity")
    )
    series = {name: types_and_all(figures) for name, figures in editors.items()}
    return by_type_chart(series, value, title, words, share=is_share(value))


def types_and_all(figures: Figures) -> dict[str, Figures]:
    """Returns an editor's figures by edit type, then those of all edits."""
    return {**dict(list(figures.by_type.items())[:MOST_TYPES]), ALL: figures}


def figures_table(rows: Mapping[str, Figures], headings: Mapping[str, str] | None = None) -> Table:
    """Lists a line per editor or edit type and a column per heading, or per figure that one of them has."""
    headings = headings or headings_of(*rows.values())
    lines = [Line(name, figures.n, [cell(figures, column) for column in headings]) for name, figures in rows.items()]
    return Table(list(headings.values()), lines)


def _by_type_table(editors: Mapping[str, Figures]) -> Table | None:
    """Lists a line per edit type: the editor's figures, then the success of every baseline."""
    rows = types_and_all(editors[EDITOR])
    if len(rows) < 2:
        return None
    table = figures_table(rows, headings_of(*(figures for kind, figures in rows.items() if kind != ALL)))
    for name, figures in editors.items():
        if name != EDITOR and figures.get("success"):
            table.columns.append(f"{name}: success")
            for line in table.lines:
                line.cells.append(cell(types_and_all(figures).get(line.name), "success"))
    return table


def judge_words(judge: Json) -> str:
    """Says which CLIP judges, and what to think of it; empty if the evaluation does not record it."""
    model, filtered_by = judge.get("model"), judge.get("filter")
    if not model:
        return ""
    if judge.get("same_as_filter"):
        return (
            f"The CLIP figures are judged by {model}, which also filtered the training pairs. "
            "That flatters them: the editor learned from pairs that were chosen to please this very model."
        )
    suffix = f" ({filtered_by})" if filtered_by else ""
    return f"The CLIP figures are judged by {model}, not by the one that filtered the training pairs{suffix}."


def paired_lines(tests: Mapping[str, object]) -> list[PairedLine]:
    """Lists what `evaluation.metrics.paired` returns of each two editors that have edits in common."""
    lines = []
    for name, test in ((name, mapping(raw)) for name, raw in tests.items()):
        if test.get("n"):
            n, won, lost = (count(int(num)) if is_number(num := test.get(key)) else "–" for key in ("n", "won", "lost"))
            p = p_value(p) if is_number(p := test.get("p")) else "–"
            difference = read_figure(test.get("difference"), [test.get("low"), test.get("high")])
            lines.append(PairedLine(editor_name(name), n, won, lost, p, difference_cell(difference)))
    return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """The sweep of the image guidance."""

    chart: Chart | None
    rates: Chart | None
    table: Table
    n: int


def guidance(facts: RunFacts) -> Guidance | str:
    """Shows the sweep of the image guidance, and the curves of what was measured beside it."""
    curves = curves_of(facts.evaluation)
    chart, rates = tradeoff_chart(curves), rates_chart(facts.evaluation.curve)
    if chart is None and rates is None:
        return "The image guidance was not swept yet."
    most = max((point.n for curve in curves.values() for point in curve), default=0)
    return Guidance(chart=chart, rates=rates, table=points_table(curves), n=most)


def curves_of(evaluation: Evaluation) -> dict[str, Sequence[Figures]]:
    """Returns every curve of an evaluation by its name, the trained editor's own first."""
    curves = {editor_name(name): points for name, points in evaluation.curves.items()}
    own = evaluation.curve
    return {EDITOR: own, **curves} if own and own not in curves.values() else curves


def points_table(curves: Mapping[str, Sequence[Figures]]) -> Table:
    """Lists every point in figures, for those who do not see the chart or want to copy it."""
    points = [(name, point) for name, curve in curves.items() for point in curve]
    headings = headings_of(*(point for _, point in points))
    lines = [
        Line(name, point.n, [cell(point, column) for column in headings], knob_of(point)[0] or "–")
        for name, point in points
    ]
    return Table(list(headings.values()), lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """One input under both guidance scales: a row per text guidance, a column per image guidance."""

    instruction: str
    original: Thumbnail | None
    across: list[str]
    rows: list[tuple[str, list[Thumbnail | None]]]


@dataclass(frozen=True, slots=True)
class Grids:
    """The guidance grids of a few held-out inputs."""

    grids: list[Grid]
    left_out: int


def grids(facts: RunFacts) -> Grids | str:
    """Shows text guidance × image guidance of a few held-out inputs."""
    if facts.grids is None:
        return "No guidance grids were made."
    try:
        inputs = _read_grids(facts.grids)
    except UNREADABLE as error:
        logger.warning("left the guidance grids out of the report: %s", error)
        return "The guidance grids cannot be read (evaluation/grids.parquet)."
    album = Album(GRID_BYTES)
    grids = [_grid(instruction, places, album) for instruction, places in list(inputs.values())[:NUM_GRIDS]]
    drawn = [grid for grid in grids if grid]
    return Grids(drawn, album.num_left_out) if drawn else "The guidance grids are empty."


Scales = tuple[float, float]
"""Text guidance and image guidance."""


def _read_grids(file: Path) -> dict[int, tuple[str, dict[Scales, Place]]]:
    """Reads the instruction of each case, and the place of its picture at each pair of scales."""
    inputs: dict[int, tuple[str, dict[Scales, Place]]] = {}
    columns = ["case", "edit_prompt", "guidance_scale", "image_guidance_scale"]
    for index, row in enumerate(pq.read_table(file, columns=columns).to_pylist()):
        text, image = row["guidance_scale"], row["image_guidance_scale"]
        if is_number(text) and is_number(image):
            inputs.setdefault(row["case"], (row["edit_prompt"], {}))[1][text, image] = Place(file, index)
    return inputs


def _grid(instruction: str, places: Mapping[Scales, Place], album: Album) -> Grid | None:
    """Lays out one input's grid; None if no picture is left or fits."""
    down, across = (sorted(set(scales))[:MOST_SCALES] for scales in zip(*places, strict=True))
    inside = {scales: place for scales, place in places.items() if scales[0] in down and scales[1] in across}
    (original,) = read_pictures(list(inside.values())[:1], "original_image")
    pictures = {
        (text, image): picture.described(f"Text guidance {text:g}, image guidance {image:g}")
        for (text, image), picture in zip(inside, read_pictures(list(inside.values()), "edited_image"), strict=True)
        if picture and album.takes(picture)
    }
    if not pictures:
        return None
    return Grid(
        instruction=clipped(instruction),
        original=original.described("Input") if original and album.takes(original) else None,
        across=[f"{scale:g}" for scale in across],
        rows=[(f"{text:g}", [pictures.get((text, image)) for image in across]) for text in down],
    )


Tile = tuple[str, str, str]
"""A title, a figure and a line beneath."""


JUDGED_TILES = {
    "success": ("Edits that succeed", "done and kept"),
    "done": ("Done", "the change is there"),
    "kept": ("Kept", "all else as before"),
}
MEASURED_TILES = {"clip_direction": "CLIP direction", "clip_image": "CLIP image similarity"}


def headlines(facts: RunFacts) -> list[Tile]:
    """Returns the few figures that sum the run up."""
    tiles = _editor_tiles(facts.evaluation.editor)
    if total := facts.candidates.num_rows:
        num = num_accepted(facts)
        tiles.append(("Accepted pairs", count(num), f"{percent(num / total)} of {count(total)} candidates"))
    accepted, everything = (figures and figures.get("success") for figures in precisions(facts))
    if accepted:
        note = f"{percent(everything.value)} of all candidates" if everything else "by the oracle"
        tiles.append(("Accepted that are right", percent(accepted.value), note))
    if facts.seconds:
        tiles.append(("Time", duration(sum(facts.seconds.values())), "all stages"))
    return tiles


def _editor_tiles(figures: Figures) -> list[Tile]:
    """Returns the oracle's shares, or CLIP's similarities if there is no oracle."""
    tiles, n = [], f"n\u00a0=\u00a0{count(figures.n)}"
    if figures.get("success"):
        for name, (title, note) in JUDGED_TILES.items():
            if figure := figures.get(name):
                note = f"{note}\n{percents(*figure.bounds)} (95\u00a0%), {n}"
                tiles.append((title, percent(figure.value), note))
        return tiles
    measured = {title: figure for name, title in MEASURED_TILES.items() if (figure := figures.get(name))}
    return [(title, score(figure.value), f"held-out edits, {n}") for title, figure in measured.items()]


def setting_rows(settings: Iterable[tuple[str, object]]) -> list[tuple[str, str]]:
    """Lists settings, nested ones too, as (dotted name, value)."""
    rows: list[tuple[str, str]] = []
    for key, value in settings:
        if isinstance(value, dict) and value:
            rows += [(f"{key}.{name}", text) for name, text in setting_rows(value.items())]
        else:
            rows.append((key, str(value)[:MOST_SIGNS]))
    return rows
