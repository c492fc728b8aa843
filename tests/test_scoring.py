"""Scores are declared once: every plug-in is complete, and a new one reaches tables, filter, card, page and docs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pytest
import tyro

import ip2p.scoring
from ip2p import ablation, rendering, store
from ip2p.config import FilteringConfig, PipelineConfig, ScoringConfig, Thresholds, fingerprint, to_dict
from ip2p.config.files import overlay
from ip2p.config.filtering import path_of
from ip2p.dataset.card import describe_rejections
from ip2p.filtering import REASONS, check_thresholds, judge
from ip2p.records import PairScores
from ip2p.rendering.table import SCHEMA
from ip2p.report.format import reason_name
from ip2p.scoring import BESIDE, BOUNDS, SCORES, Score
from ip2p.scoring.scorer import load_scorer
from ip2p.store import RunFolder
from tests.test_rendering_candidates import write_triplets

FOLDER = Path(ip2p.scoring.__file__).parent
DOCS = FOLDER.parent.parent / "docs" / "data.md"
GOOD = PairScores(original=0.3, edited=0.3, direction=0.3, image=0.9)


def test_every_file_of_the_folder_declares_scores_with_names_and_words() -> None:
    plugins = {path.stem for path in FOLDER.glob("*.py")} - {*BESIDE, "__init__"}
    declared = [score for name in plugins for score in sys.modules[f"ip2p.scoring.{name}"].SCORES]
    assert sorted(score.name for score in declared) == sorted(SCORES)
    for score in declared:
        assert re.fullmatch(r"[a-z]\w*", score.name) and not score.name.startswith("max_")
        assert score.column and score.title and score.meaning and score.unit
        assert score.too_low or score.too_high, f"{score.name} has no bound"


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES.keys())
def test_every_bound_of_a_score_is_in_the_docs_table_of_thresholds(score: Score) -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `filtering.thresholds.")]
    for bound in BOUNDS.values():
        if bound.score is score:
            flag = f"`filtering.thresholds.{bound.threshold.replace('_', '-')}`"
            assert any(flag in row for row in rows), f"docs/data.md has no row for {flag}"


def test_the_order_of_scores_and_columns_is_that_of_older_tables() -> None:
    names = ["original", "edited", "direction", "image", "contrast", "ssim", "dino", "nsfw", "shift"]
    assert list(SCORES)[: len(names)] == names
    start = SCHEMA.names.index("clip_original")
    assert SCHEMA.names[start : start + 9] == [f"clip_{name}" for name in names[:4]] + names[4:]


def test_every_threshold_with_a_field_is_a_bound_that_its_score_understands() -> None:
    own = {field.name for field in fields(Thresholds)} - {"further"}
    assert own == {bound.threshold for bound in BOUNDS.values()}


def test_every_reason_of_the_filter_has_words_in_the_report() -> None:
    assert set(BOUNDS) < set(REASONS)
    assert all(reason_name(reason) == words != reason for reason, words in REASONS.items())


def test_listing_the_scores_loads_no_torch() -> None:
    code = "import sys, ip2p.scoring; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bounds_without_a_field_leave_no_trace_while_there_are_none() -> None:
    assert "further" not in to_dict(Thresholds()) and "further" not in to_dict(ScoringConfig())
    assert (fingerprint(Thresholds()), fingerprint(ScoringConfig())) == ("b711c6d806ef1ca2", "9c9548ae9744a17d")
    assert fingerprint(Thresholds(further={"warmth": 0.5})) != fingerprint(Thresholds())


def test_bounds_without_a_field_come_from_flags_and_from_files() -> None:
    words = ["--thresholds.further", "warmth", "0.5", "max_warmth", "0.75"]
    thresholds = Thresholds(further={"warmth": 0.5, "max_warmth": 0.75})
    assert tyro.cli(FilteringConfig, args=words).thresholds == thresholds
    assert overlay(FilteringConfig(), to_dict(FilteringConfig(thresholds=thresholds))).thresholds == thresholds


def test_a_bound_is_set_in_one_way_only() -> None:
    with pytest.raises(ValueError, match=r"further sets direction, which has a field. Set filtering.thresholds.direct"):
        Thresholds(further={"direction": 0.5})


def test_a_bound_that_no_score_understands_is_refused_before_anything_is_rendered(tiny_config: PipelineConfig) -> None:
    write_triplets(tiny_config)
    own = {"add": Thresholds(further={"max_original": 0.5})}
    config = replace(tiny_config, filtering=FilteringConfig(per_edit_type=own))
    with pytest.raises(ValueError, match=r"per_edit_type.add.further sets max_original.*Known are: original, edited"):
        rendering.write_shard(config, 0)
    assert not RunFolder(config.out).shards("candidates")


def test_a_setting_that_no_score_reads_is_refused(tiny_config: PipelineConfig) -> None:
    with pytest.raises(ValueError, match=r"scoring.further sets warmth, which no score reads. Known are: ssim, dino_"):
        load_scorer(replace(tiny_config.scoring, further={"warmth": "yes"}))


def test_a_score_is_measured_if_its_setting_is_set_or_if_it_needs_none() -> None:
    wanted = {name for name, score in SCORES.items() if score.is_wanted(ScoringConfig())}
    assert wanted == {"original", "edited", "direction", "image", "contrast"}
    assert SCORES["ssim"].is_wanted(ScoringConfig(ssim=True))
    assert replace(SCORES["ssim"], setting="heat").is_wanted(ScoringConfig(further={"heat": "yes"}))


def write_rejected(config: PipelineConfig, reasons: dict[str, tuple[str, int]]) -> None:
    """Writes a table of candidates: per reason its edit type and how many rows have it."""
    rows = [{"reason": name, "edit_type": kind} for name, (kind, num) in reasons.items() for _ in range(num)]
    path = RunFolder(config.out).shard("candidates", 0)
    store.write_shard(path, pa.Table.from_pylist(rows), fingerprint="test", seconds=0.0)


def test_advice_lowers_minima_and_raises_maxima_of_the_section_that_rejected_most_first(tmp_path: Path) -> None:
    filtering = FilteringConfig(
        thresholds=Thresholds(max_image=0.75), per_edit_type={"add": Thresholds(direction=0.625)}
    )
    config = PipelineConfig(out=tmp_path, filtering=filtering)
    write_rejected(config, {"low_direction": ("add", 3), "high_image": ("size", 5), "first_look": ("size", 1)})
    assert describe_rejections(config).partition("). ")[2] == (
        "Raise filtering.thresholds.max_image (now 0.75), lower filtering.per_edit_type.add.direction (now 0.625), "
        "raise filtering.first_look_slack (now 0.1), or raise rendering.num_candidates."
    )


def test_advice_on_a_score_that_is_not_measured_says_what_measures_it(tmp_path: Path) -> None:
    config = PipelineConfig(out=tmp_path, filtering=FilteringConfig(thresholds=Thresholds(ssim=0.5)))
    write_rejected(config, {"low_ssim": ("", 2)})
    said = describe_rejections(config)
    assert path_of(Thresholds, "max_ssim") == "max_ssim" and path_of(Thresholds, "warmth") == "further.warmth"
    assert path_of(ScoringConfig, "ssim") == "ssim" and path_of(ScoringConfig, "heat") == "further.heat"
    assert "Lower filtering.thresholds.ssim (now 0.5) or set scoring.ssim, without which it is not measured" in said


PLUGIN = '''"""How warm the edited image is: red against blue."""

import numpy as np

from ip2p.scoring.score import Batch, Score


def measure(batch: Batch) -> list[float]:
    """Returns the mean red minus the mean blue."""
    return [float(np.subtract(*np.asarray(image).mean((0, 1))[[0, 2]]) / 255) for image in batch.edited]


SCORES = (
    Score(
        name="warmth",
        column="warmth",
        title="warmth",
        meaning="Red against blue",
        unit="difference",
        too_low="picture too cold",
        too_high="picture too warm",
        is_similarity=False,
        prepare=lambda _: measure,
        setting="heat",
    ),
)
'''
USE = """
import dataclasses, sys
import pyarrow.parquet as pq
from pathlib import Path
from ip2p import rendering
from ip2p.config.files import read_run
from ip2p.dataset.card import describe_rejections
from ip2p.dataset.inspection import describe
from ip2p.dataset.schema import schema_of
from ip2p.filtering import FIRST_LOOK
from ip2p.report.format import SCORES, reason_name
from ip2p.store import RunFolder

config = read_run(Path(sys.argv[1]))
rendering.write_shard(config, 0)
rows = pq.read_table(RunFolder(config.out).shard("candidates", 0)).to_pylist()
assert all(-1 <= row["warmth"] <= 1 for row in rows)
middle = sorted(row["warmth"] for row in rows)[3]
thresholds = config.filtering.thresholds.with_bounds({"max_warmth": middle})
strict = dataclasses.replace(config, filtering=dataclasses.replace(config.filtering, thresholds=thresholds))
counts = rendering.refilter(strict)
assert counts["high_warmth"] == sum(row["warmth"] > middle for row in rows) > 0, counts
assert reason_name("high_warmth") == "picture too warm" and SCORES["warmth"] == "warmth"
assert "warmth" in schema_of(RunFolder(config.out).shards("pairs")).names
assert "warmth, accepted" in describe(strict) and "picture too warm" in describe(strict)
assert f"aise filtering.thresholds.further.max_warmth (now {middle:g})" in describe_rejections(strict)
"""


@pytest.fixture
def copied_package(tmp_path: Path) -> Iterator[Path]:
    """A tree that has this package by links, but its scores by copies."""
    root = FOLDER.parent
    package = tmp_path / "tree" / "ip2p"
    (package / "scoring").mkdir(parents=True)
    for path in root.iterdir():
        if path.name not in ("scoring", "__pycache__"):
            (package / path.name).symlink_to(path)
    for path in FOLDER.glob("*.py"):
        (package / "scoring" / path.name).write_text(path.read_text())
    yield package


@pytest.mark.slow
def test_a_new_score_is_one_file(copied_package: Path, tiny_config: PipelineConfig) -> None:
    (copied_package / "scoring" / "warmth.py").write_text(PLUGIN)
    config = replace(tiny_config, scoring=replace(tiny_config.scoring, further={"heat": "yes"}))
    write_triplets(config)
    store.write_json(config.out / "config.json", to_dict(config))
    command = [sys.executable, "-c", USE, str(config.out)]
    environment = {**os.environ, "PYTHONPATH": str(copied_package.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=copied_package)
    assert done.returncode == 0, done.stderr


def test_judging_one_pair_knows_a_missing_score_from_a_good_one() -> None:
    check_thresholds(FilteringConfig())
    assert judge(GOOD, Thresholds(max_nsfw=0.5)).reason == "high_nsfw"
    assert judge(replace(GOOD, further={"nsfw": 0.4}), Thresholds(max_nsfw=0.5)).accepted


def test_without_the_filter_bounds_that_came_later_stay_unless_they_are_on_similarities(
    tiny_config: PipelineConfig,
) -> None:
    limits = Thresholds(direction=0.5, max_ssim=0.5, further={"warmth": 0.5})
    filtering = replace(tiny_config.filtering, thresholds=limits)
    opened = ablation.unfiltered(replace(tiny_config, filtering=filtering)).filtering.thresholds
    assert opened.bounds == {**dict.fromkeys(("original", "edited", "direction", "image"), -1.0), "warmth": 0.5}
