"""Several runs on one page: what is paired with what, and the test between them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p.cli import main
from ip2p.config import EvaluationConfig, PipelineConfig
from ip2p.evaluation import metrics
from ip2p.evaluation.metrics import mcnemar
from ip2p.report.compare import describe_comparison

CLIP = ("clip_original", "clip_edited", "clip_direction", "clip_image")


def write_run(folder: Path, successes: list[bool], *, lift: float = 0.0, **knobs: Any) -> PipelineConfig:
    """A run that was evaluated on pictures of its number, with one point of the sweep."""
    config = PipelineConfig(out=folder, evaluation=EvaluationConfig(**knobs))
    (folder / "evaluation").mkdir(parents=True)
    rows = []
    for number, success in enumerate(successes):
        scores = dict.fromkeys(CLIP, 0.1 * number + lift)
        judged = {"success": success, "done": success, "kept": True, "legible": True}
        words = {"edit_type": "colour", "edit_prompt": f"edit {number}", "image_guidance_scale": 1.5}
        for kind in ("edit", "sweep"):
            rows.append({"model": "model", "kind": kind, "case": number, "seed": 7, **words, **judged, **scores})
    records = [row for row in rows if row["kind"] == "edit"]
    figures = {**metrics.summarise(records), "curve": metrics.curve([row for row in rows if row["kind"] == "sweep"])}
    (folder / "evaluation/figures.json").write_text(json.dumps(figures))
    pq.write_table(pa.Table.from_pylist(rows), folder / "evaluation/scores.parquet")
    pictures = [{"case": number, "original_image": {"bytes": bytes([number])}} for number in range(len(successes))]
    pq.write_table(pa.Table.from_pylist(pictures), folder / "evaluation/cases.parquet")
    (folder / "config.json").write_text(json.dumps(asdict(config), default=str))
    return config


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (5, 5), (1, 9), (58, 32)])
def test_mcnemars_p_is_the_chance_of_a_split_as_uneven(lost: int, won: int) -> None:
    num = lost + won
    chances = [math.comb(num, k) / 2**num for k in range(num + 1)]
    assert mcnemar(lost, won) == pytest.approx(sum(p for p in chances if p <= chances[won] * (1 + 1e-9)))


def test_runs_are_compared_edit_by_edit(tmp_path: Path) -> None:
    first = write_run(tmp_path / "one", [True, True, False, True, False])
    other = write_run(tmp_path / "two", [True, False, True, False, False, True], lift=0.05, num_edits=9)
    told = describe_comparison([first, other])
    assert told.names == ["one", "two"]
    assert [line.cells[0] and line.cells[0].value for line in told.table.lines] == ["60\u00a0%", "50\u00a0%"]
    (line,) = told.paired
    assert line.difference is not None
    assert (line.n, line.lost, line.won, line.difference.value) == ("5", "2", "1", "+0.050")
    assert float(line.p) == 1.0
    assert told.settings == [("evaluation.num_edits", ["490", "9"])]
    assert told.curves is not None and told.curves.svg.count('class="band') == 2 and told.pictures is None


def test_a_run_without_a_sweep_is_not_counted_among_the_curves_left_out(tmp_path: Path) -> None:
    first, other = (write_run(tmp_path / name, [True, False]) for name in ("one", "two"))
    path = other.out / "evaluation/figures.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"curve": []}))
    curves = describe_comparison([first, other]).curves
    assert curves is not None and curves.num_left_out == 0


def test_other_pictures_are_not_paired(tmp_path: Path) -> None:
    first = write_run(tmp_path / "one", [True, False])
    other = write_run(tmp_path / "two", [True, False])
    pictures = pq.read_table(tmp_path / "two/evaluation/cases.parquet").to_pylist()
    moved = [row | {"original_image": {"bytes": b"other"}} for row in pictures]
    pq.write_table(pa.Table.from_pylist(moved), tmp_path / "two/evaluation/cases.parquet")
    assert describe_comparison([first, other]).paired == []


def test_the_command_writes_one_page_and_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (write_run(tmp_path / name, [True, False]) for name in ("one", "two"))
    assert main(["compare", str(one.out), str(two.out)]) == 0
    page = (tmp_path / "comparison-one-two.html").read_text()
    assert "2 runs compared" in page and "http://" not in page and page.count("<script") == 1
    assert main(["compare", str(one.out)]) == 2
    (tmp_path / "two/evaluation/figures.json").write_text("{}")
    assert main(["compare", str(one.out), str(two.out)]) == 2
    assert "was not evaluated" in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    configs = [write_run(tmp_path / name / "run", [True]) for name in ("a", "b")]
    assert describe_comparison(configs).names == ["a/run", "b/run"]
    alike = describe_comparison([configs[0], replace(configs[0])])
    assert alike.names == ["run (1)", "run (2)"] and alike.paired[0].p == "1.000"
