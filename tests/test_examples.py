"""The scripts of `examples/` run as they are, and do what they say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset

from ip2p.records import EditTriplet
from ip2p.shapes.domain import ShapesDomain
from tests.pages import ROOT

pytestmark = pytest.mark.slow


def run_example(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a script as `python examples/NAME ARGUMENTS` does, in this process."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


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
