"""Several runs on one page, compared with each other."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ip2p.config import PipelineConfig, to_dict
from ip2p.evaluation.metrics import paired
from ip2p.report.charts import by_type_chart, tradeoff_chart
from ip2p.report.data import rates_of
from ip2p.report.editor import (
    PairedLine,
    figures_table,
    judge_words,
    paired_lines,
    points_table,
    setting_rows,
    types_and_all,
)
from ip2p.report.facts import (
    UNREADABLE,
    HeldOutEdit,
    Json,
    is_number,
    read_figures,
    take_turns,
)
from ip2p.report.format import (
    Cell,
    Table,
    count,
    duration,
    percent,
    percents,
)
from ip2p.report.pictures import ROWS_AT_ONCE
from ip2p.report.reading import RunFacts, read_run
from ip2p.report.sheets import MOST_EDITORS, NUM_SIDE_BY_SIDE, Sheet, side_by_side
from ip2p.report.svg import Chart
from ip2p.store import RunFolder

logger = logging.getLogger(__name__)

CaseHashes = Callable[[Path], Sequence[str]]
"""Reads a hash of every held-out picture from a file of cases."""
Key = tuple[str, str]
"""What makes an edit the same in two runs: the hash of its picture, and its instruction."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the page of several runs lays out."""

    names: list[str]
    table: Table
    judges: list[tuple[str, str]]
    """(runs, which CLIP judged them)."""
    paired: list[PairedLine]
    curves: Chart | None
    points: Table
    by_type: Chart | None
    pictures: Sheet | None
    cost: list[tuple[str, list[str]]]
    settings: list[tuple[str, list[str]]]
    """Settings that differ between the runs."""


def describe_comparison(configs: Sequence[PipelineConfig]) -> Comparison:
    """Reads several runs. ValueError for fewer than two runs, or for one that was not evaluated."""
    if len(configs) < 2:
        raise ValueError(f"a comparison takes two runs or more, got {len(configs)}. Give their folders.")
    names = _short_names(configs)
    runs = dict(zip(names, map(read_run, configs), strict=True))
    for facts in runs.values():
        if not facts.evaluation.editor.n:
            out = facts.config.out
            raise ValueError(f"{out} was not evaluated. Run `ip2p evaluate {out}` first.")
    hashes = functools.cache(_case_hashes)  # of all held-out pictures, for the figures and for the sheet
    first, *others = (_scored_edits(facts.config, hashes) for facts in runs.values())
    curves = {name: facts.evaluation.curve for name, facts in runs.items()}
    judged = {name: figures for name, facts in runs.items() if (figures := facts.evaluation.editor).get("success")}
    by_type = {name: types_and_all(figures) for name, figures in judged.items()}
    settings = _beside([dict(setting_rows(to_dict(config).items())) for config in configs])
    return Comparison(
        names=names,
        table=_runs_table(runs),
        judges=_judges(runs),
        paired=paired_lines({name: paired(first, edits) for name, edits in zip(names[1:], others, strict=True)}),
        curves=tradeoff_chart(curves),
        points=points_table(curves),
        by_type=by_type_chart(by_type, "success", "Success by edit type", "share of held-out edits that succeed"),
        pictures=_same_edits(runs, hashes),
        cost=_beside([_cost(facts) for facts in runs.values()]),
        settings=[(name, values) for name, values in settings if len(set(values)) > 1 and name != "out"],
    )


def _cost(facts: RunFacts) -> dict[str, str]:
    rates = {title: value for title, value, _ in rates_of(facts)}
    return {**rates, "All stages": duration(sum(facts.seconds.values()))} if facts.seconds else rates


def _beside(columns: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Returns (name, one value per column) of all names that a column has."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name, "–") for column in columns]) for name in names]


def _runs_table(runs: Mapping[str, RunFacts]) -> Table:
    """Lists the figures of every run, and what its editor was made from."""
    table = figures_table({name: facts.evaluation.editor for name, facts in runs.items()})
    sources = [_made_from(facts) for facts in runs.values()]
    for title in dict.fromkeys(title for source in sources for title in source):
        table.columns.append(title)
        for line, source in zip(table.lines, sources, strict=True):
            line.cells.append(source.get(title))
    return table


def _made_from(facts: RunFacts) -> dict[str, Cell]:
    """Returns by title what is known of the pairs that a run trained on."""
    rendering, dataset = facts.summary_of("rendering"), read_figures(facts.summary_of("dataset"))
    num_pairs = facts.summary_of("training").get("samples")
    candidates, accepted = rendering.get("candidates"), rendering.get("accepted")
    cells = {}
    if is_number(num_pairs):
        cells["Training pairs"] = Cell(count(int(num_pairs)))
    if is_number(candidates) and candidates and is_number(accepted):
        cells["Accepted candidates"] = Cell(percent(accepted / candidates), f"of {count(int(candidates))}")
    if right := dataset.get("oracle_precision"):
        cells["Accepted that are right"] = Cell(
            percent(right.value), percents(*right.interval) if right.interval else ""
        )
    return cells


def _judges(runs: Mapping[str, RunFacts]) -> list[tuple[str, str]]:
    """Returns who judged which runs; those with the same judge together."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, facts in runs.items():
        names[judge_words(facts.evaluation.judge)].append(name)
    return [(", ".join(judged), words) for words, judged in names.items() if words]


def _short_names(configs: Sequence[PipelineConfig]) -> list[str]:
    """Names the folders, with as many parents as make the names unique."""
    paths = [config.out.resolve() for config in configs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, 1)]


def _scored_edits(config: PipelineConfig, hashes_of: CaseHashes) -> list[Json]:
    """Reads the scores of the trained editor's held-out edits; `case` is their picture, words and seed."""
    folder = RunFolder(config.out).evaluation
    try:
        hashes = hashes_of(folder / "cases.parquet")
        rows = pq.read_table(folder / "scores.parquet").to_pylist()
        edits = [row for row in rows if row["model"] == "model" and row["kind"] == "edit"]
        return [row | {"case": (hashes[row["case"]], row["edit_prompt"], row.get("seed"))} for row in edits]
    except UNREADABLE as error:
        logger.warning("%s is not compared edit by edit: %s", config.out, error)
        return []


def _case_hashes(file: Path) -> list[str]:
    """Returns a hash per held-out picture, read a few at a time."""
    hashes: list[str] = []
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, columns=["original_image"]):
            hashes += [hashlib.sha256(cell["bytes"]).hexdigest() for cell in batch["original_image"].to_pylist()]
    return hashes


def _same_edits(runs: Mapping[str, RunFacts], hashes_of: CaseHashes) -> Sheet | None:
    """Shows the edits that all runs made, side by side; None if there are none."""
    runs = dict(list(runs.items())[:MOST_EDITORS])
    try:
        edits = {name: _by_key(facts, hashes_of) for name, facts in runs.items()}
    except UNREADABLE as error:
        logger.warning("left the pictures out of the comparison: %s", error)
        return None
    first, first_edits = next(iter(runs.values())), next(iter(edits.values()))
    keys = {edit.case: key for key, edit in first_edits.items() if all(key in other for other in edits.values())}
    verdicts = {case: _verdict(edits, key) for case, key in keys.items()}
    shared = [first_edits[key] for key in keys.values()]
    chosen = take_turns(shared, lambda edit: (verdicts[edit.case], edit.edit_type), NUM_SIDE_BY_SIDE)
    if first.cases is None or not chosen:
        return None
    same = {name: [others[keys[edit.case]] for edit in chosen] for name, others in edits.items()}
    order = [*(f"only {name}" for name in runs), "some runs", "every run", "no run"]
    return side_by_side(same, first.cases, {"clip_direction": "direction"}, len(shared), verdicts, order)


def _by_key(facts: RunFacts, hashes_of: CaseHashes) -> dict[Key, HeldOutEdit]:
    if facts.cases is None:
        return {}
    hashes = hashes_of(facts.cases)
    return {(hashes[edit.case], edit.edit_prompt): edit for edit in facts.edits}


def _verdict(edits: Mapping[str, Mapping[Key, HeldOutEdit]], key: Key) -> str:
    """Says which runs succeed; empty if not all were judged."""
    outcomes = {name: by_key[key].outcome for name, by_key in edits.items()}
    if None in outcomes.values():
        return ""
    good = [name for name, outcome in outcomes.items() if outcome == "success"]
    if len(good) in (0, len(outcomes)):
        return "every run" if good else "no run"
    return f"only {good[0]}" if len(good) == 1 else "some runs"


def default_page(configs: Sequence[PipelineConfig]) -> Path:
    """Returns the page's default place: beside the first run."""
    return configs[0].out.parent / ("comparison-" + "-".join(config.out.name for config in configs) + ".html")
