"""The benchmarks' own parts: models of the right size, operations as counted by hand, a kit that always ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.architectures import BASES, CLIP_LENGTH, Shape
from tests.benchmarks.drawn_pairs import write_drawn_pairs
from tests.benchmarks.flops import count_operations
from tests.benchmarks.kit import TINY, run_part
from tests.benchmarks.kit_parts import NEEDS_A_CARD, NO_SCRIPT, PARTS, Figure, Kit, Part
from tests.benchmarks.training import Run, row_of, tell
from tests.pages import ROOT

PUBLISHED = {
    "sd15": ("unet", 859_520_964, 83_653_863, 123_060_480),
    "sdxl": ("unet", 2_567_463_684, 83_653_863, 123_060_480),
}
"""Parameters of the released denoisers, autoencoders and first text encoders."""


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_model_has_as_many_parameters_as_the_released_one(name: str, tmp_path: Path) -> None:
    from ip2p.shapes.train.text import write_tokenizer

    tokenizer = write_tokenizer(tmp_path, CLIP_LENGTH)
    with torch.device("meta"):
        pipeline = BASES[name](tokenizer, Shape())
    denoiser, *expected = PUBLISHED[name]
    parts = (getattr(pipeline, denoiser), pipeline.vae, pipeline.text_encoder)
    assert [sum(each.numel() for each in part.parameters()) for part in parts] == expected


def test_a_transformer_has_the_blocks_that_are_asked_for(tmp_path: Path) -> None:
    from ip2p.shapes.train.text import write_tokenizer

    tokenizer = write_tokenizer(tmp_path, CLIP_LENGTH)
    with torch.device("meta"):
        whole, cut = (BASES["sd3"](tokenizer, Shape(depth=depth)).transformer for depth in (None, 5))
    assert (len(whole.transformer_blocks), len(cut.transformer_blocks)) == (24, 5)
    assert 2.23e9 < sum(each.numel() for each in whole.parameters()) < 2.25e9
    with pytest.raises(ValueError, match="Leave it out"):
        BASES["sd15"](tokenizer, Shape(depth=5))


def test_pairs_are_drawn_alike_each_time(tmp_path: Path) -> None:
    files = [
        next(write_drawn_pairs(tmp_path / name, 2, 96).rglob("*.parquet")).read_bytes() for name in ("first", "second")
    ]
    assert files[0] == files[1]


def test_operations_are_those_of_products_and_attention_in_both_passes() -> None:
    rows, width, heads, positions, depth = 6, 16, 2, 8, 4
    layer, inputs = torch.nn.Linear(width, width), torch.randn(rows, width)
    query, key, value = (torch.randn(1, heads, positions, depth, requires_grad=True) for _ in range(3))
    product = 2 * heads * positions * positions * depth

    def attend() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    def attend_and_go_back() -> None:
        attend().sum().backward()  # type: ignore[no-untyped-call]

    assert count_operations(lambda: layer(inputs)) == 2 * rows * width * width
    assert count_operations(attend) == 2 * product
    assert count_operations(attend_and_go_back) == 2 * product + 5 * product  # the map again, then four products


def test_the_first_steps_of_a_training_are_not_counted() -> None:
    times = [10.0, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0, 21.0]
    assert Run(total=30.0, memory=0, caching=0.0, losses=[], times=times).steps == [1.0, 1.0, 2.0]
    assert Run(total=30.0, memory=0, caching=0.0, losses=[], times=times[:2]).steps == []


def test_rows_are_medians_of_rounds_and_ratios_are_of_ours_to_the_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    def runs(step: float, total: float, memory: int, caching: float = 0.0) -> list[Run]:
        times = [[start + step * number for number in range(4)] for start in (5.0, 7.0, 30.0)]
        return [Run(total, memory, caching, [4.0, 3.0, 2.0, 1.0], each) for each in times]

    script, ours = (
        row_of("script", 4, runs(2.0, 40.0, 2**30), batch_size=8),
        row_of("ours", 4, runs(1.0, 32.0, 2**29, caching=3.0), batch_size=8),
    )
    assert (ours.first, ours.caching, ours.step, ours.rate, ours.losses) == (7.0, 3.0, 1.0, 8.0, (3.5, 1.5))
    assert ours.last == 32.0 - 10.0
    tell([script, ours])
    printed = capsys.readouterr().out
    assert "| 4 | ours | 7.0 | 3.0 | 1.000 | 8.00 | 22.0 | 32.0 | 512 | 3.5000, 1.5000 |" in printed
    assert "4 steps: pairs a second 2.00, start to end 1.25 times as fast, peak memory 0.50 times" in printed


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path, tmp_path, "cpu", TINY)


def _fails(kit: Kit) -> list[Figure]:
    raise RuntimeError("what went before\nout of memory")


def _hangs_with_a_child(kit: Kit) -> list[Figure]:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    (kit.folder / "child").write_text(str(child.pid))
    signal.pause()
    return []


def _dies(kit: Kit) -> list[Figure]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


@pytest.mark.parametrize(
    ("run", "note"),
    [(_fails, "RuntimeError: out of memory"), (_dies, "ended without an answer"), (_hangs_with_a_child, "more than")],
)
def test_a_part_that_gives_no_figure_is_a_row_with_the_reason(kit: Kit, run: object, note: str) -> None:
    part = Part("one", 60, run, (("speed", 3.0),))  # type: ignore[arg-type]
    (row,) = run_part(part, kit, 3.0 if run is _hangs_with_a_child else 60.0)
    assert (row.part, row.what, row.value, row.goal, row.is_met) == ("one", "speed", None, 3.0, None)
    assert note in row.note
    if run is _hangs_with_a_child:
        stat = Path("/proc") / (kit.folder / "child").read_text() / "stat"
        assert not stat.exists() or stat.read_text().split()[2] == "Z"  # killed, if not yet collected


@pytest.mark.slow
def test_the_kit_fills_every_row_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.kit", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    command += ["--budget-s", "1000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert {(part.name, what) for part in PARTS.values() for what, _ in part.promises} <= {
        (row["part"], row["what"]) for row in rows
    }
    for row in rows:
        part = PARTS[row["part"]]
        reason = NEEDS_A_CARD if part.needs_card else NO_SCRIPT if part.needs_script else ""
        assert row["note"] == reason if reason else (row["value"] or 0.0) > 0, row
    assert (tmp_path / "table.md").read_text().count("\n| ") == len(rows) + 1
