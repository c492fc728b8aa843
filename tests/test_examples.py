"""The scripts of `examples/` run as they are, and do what they say."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset

from ip2p.records import EditTriplet
from ip2p.shapes.domain import ShapesDomain
from tests.pages import ROOT

JUDGE_BLURRED = """
from ip2p.config import Thresholds
from ip2p.filtering import REASONS, judge
from ip2p.records import PairScores
from ip2p.scoring import SCORE_COLUMNS

scores = PairScores(original=1.0, edited=1.0, direction=1.0, image=1.0, further={"sharpness": 0.01})
reason = judge(scores, Thresholds(further={"sharpness": 0.02})).reason
print(SCORE_COLUMNS["sharpness"], reason, REASONS[reason], sep=", ")
"""
SUMMARISE_SHIFT = """
from ip2p.evaluation import measures, metrics

records = [{"edit_type": "add", "colour_kept": shift} for shift in (0.25, 0.75, None)]
print(measures.columns()["colour_kept"].heading, metrics.summarise(records)["colour_kept"], sep=", ")
"""


def run_example(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a script as `python examples/NAME ARGUMENTS` does, in this process."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def run_with_plug_in(example: str, place: str, code: str, folder: Path) -> str:
    """Copies the package and an example into it, and returns what code prints that imports this copy."""
    shutil.copytree(ROOT / "ip2p", folder / "ip2p", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "examples" / example, folder / "ip2p" / place)
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_the_pairs_of_the_example_are_right_by_the_oracle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("make_pairs.py", str(tmp_path / "pairs"), monkeypatch=monkeypatch)

    splits: Any = load_dataset(str(tmp_path / "pairs" / "dataset"), cache_dir=str(tmp_path / "cache"))
    rows = [row for split in splits.values() for row in split]
    texts = ("original_prompt", "edit_prompt", "edited_prompt")
    verdicts = [
        ShapesDomain().judge_pair(
            EditTriplet(**{name: row[name] for name in texts}),
            np.asarray(row["original_image"]),
            np.asarray(row["edited_image"]),
        )
        for row in rows
    ]
    assert len(rows) == 3
    assert all(verdict.success for verdict in verdicts)
    assert len(list((tmp_path / "pairs" / "images").glob("*.png"))) == 6
    assert capsys.readouterr().out.count("accepted") == 3


def test_the_example_of_a_score_lists_the_shipped_pairs_from_the_blurriest_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("add_a_score.py", monkeypatch=monkeypatch)
    scores = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(scores) == 91 and scores == sorted(scores)
    assert 0 < scores[0] < scores[-1]


def test_the_example_of_a_score_is_stored_and_judged_once_it_lies_in_the_package(tmp_path: Path) -> None:
    printed = run_with_plug_in("add_a_score.py", "scoring/sharpness.py", JUDGE_BLURRED, tmp_path)
    assert printed == "sharpness, low_sharpness, blurry image"


def test_the_example_of_a_measure_tells_a_right_answer_from_a_darkened_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("add_a_measure.py", monkeypatch=monkeypatch)
    shifts = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(shifts["copy"]) == float(shifts["right answer"]) == 0 < float(shifts["half as bright"])


def test_the_example_of_a_measure_is_summarised_once_it_lies_in_the_package(tmp_path: Path) -> None:
    printed = run_with_plug_in("add_a_measure.py", "evaluation/measures/colour.py", SUMMARISE_SHIFT, tmp_path)
    assert printed == "Colour shift ↓, 0.5"
