"""Measures: what each one declares, how it reaches every table, and its values against the libraries' own words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from ip2p.cli.benchmark import describe
from ip2p.evaluation import measures, metrics
from ip2p.evaluation.benchmark import known_columns, protocol_columns
from ip2p.evaluation.benchmarks import benchmarks
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures.change import ChangeMeasure
from ip2p.evaluation.measures.lpips import LpipsMeasure
from ip2p.evaluation.measures.truth import TruthMeasure
from ip2p.evaluation.parts import measured_schema
from ip2p.report.editor import figures_table
from ip2p.report.facts import read_figures
from ip2p.shapes.domain import ShapesDomain

ROOT = Path(__file__).resolve().parent.parent
SIDE = 96
INVENTED = """
from dataclasses import dataclass

from ip2p.evaluation.measures import Column, Measure


@dataclass(frozen=True)
class InventedMeasure(Measure):
    columns = (Column("invented", "Invention", "lower", "mean"), Column("odd", "Odd", "higher", "share"))
    order = 99
    identity = "invented"

    @classmethod
    def from_setup(cls, setup):
        return cls()

    def __call__(self, cases, before, after):
        return [{"invented": 0.25, "odd": number % 2 == 1} for number, _ in enumerate(cases)]
"""


def noise(seed: int) -> Pixels:
    """A picture without structure."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def case() -> EditCase:
    """The left third may change."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, : SIDE // 3] = True
    texts = dict.fromkeys(("edit_prompt", "original_prompt", "edited_prompt", "edit_type"), "")
    return EditCase(original_image=noise(0), mask=mask, target_image=noise(1), **texts)  # type: ignore[arg-type]


def test_ssim_outside_the_mask_is_the_mean_of_the_library_s_map_there(case: EditCase) -> None:
    after = noise(2)
    _, similar = structural_similarity(
        case.original_image,
        after,
        channel_axis=-1,
        full=True,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    (row,) = TruthMeasure()([case], [case.original_image], [after])
    assert row["ssim_kept"] == pytest.approx(similar[:, SIDE // 3 :].mean())


def test_a_change_inside_the_mask_costs_nothing_outside_it(case: EditCase) -> None:
    after = case.original_image.copy()
    after[:, : SIDE // 3 - 8] = 0
    (row,) = TruthMeasure()([case], [case.original_image], [after])
    assert row["ssim_kept"] == pytest.approx(1.0)
    (changed,) = ChangeMeasure()([case], [case.original_image], [after])
    assert not changed["no_op"] and float(changed["change"] or 0.0) > 0.3


def test_distances_to_the_target_are_none_without_one_and_zero_at_it(case: EditCase) -> None:
    at_target, without = TruthMeasure()(
        [case, replace(case, target_image=None, mask=None)],
        [case.original_image] * 2,
        [noise(1)] * 2,
    )
    assert at_target["l1"] == at_target["l2"] == 0
    assert without == {"l1": None, "l2": None, "ssim_kept": None}


def test_lpips_outside_the_mask_is_the_mean_of_its_authors_map_there(case: EditCase, squeezenet: str) -> None:
    measure, after = LpipsMeasure(squeezenet, "cpu"), noise(2)
    (row,) = measure([case], [case.original_image], [after])
    model = lpips.LPIPS(net=squeezenet, spatial=True, verbose=False)
    one, other = (
        torch.tensor(each).permute(2, 0, 1)[None].float() / 127.5 - 1 for each in (case.original_image, after)
    )
    with torch.no_grad():
        found = model(one, other)[0, 0].numpy()
    assert row["lpips_kept"] == pytest.approx(found[:, SIDE // 3 :].mean(), rel=1e-5)
    assert measure([replace(case, mask=None)], [case.original_image], [after]) == [{"lpips_kept": None}]


def test_the_domain_knows_the_right_picture_and_where_it_differs_but_for_what_may_go_anywhere() -> None:
    domain = ShapesDomain()
    for case in domain.draw_cases(70, 3):
        if case.edit_type == "add":
            assert case.target_image is None and case.mask is None
            continue
        assert case.target_image is not None and case.mask is not None
        assert domain.judge_case(case, case.target_image).success
        outside = ~case.mask
        assert np.array_equal(case.target_image[outside], case.original_image[outside]) and case.mask.any()


def test_every_module_of_the_folder_is_one_measure_with_titles_and_directions() -> None:
    modules = {path.stem for path in Path(measures.__file__).parent.glob("*.py")} - {"__init__"}
    classes = measures.measure_classes()
    assert sorted(cls.__module__.rpartition(".")[2] for cls in classes) == sorted(modules)
    assert len({cls.order for cls in classes}) == len(classes)
    for cls in classes:
        assert cls.__doc__ and cls.columns
        for column in cls.columns:
            assert column.title and not re.search("[↑↓]", column.title), "the direction is declared, not spelled out"
            assert column.kind in ("share", "mean") and column.better in ("higher", "lower", None)
            assert column.better or column.shown_in == "nowhere", f"{column.name} is shown without a direction"
    names = [column.name for cls in classes for column in cls.columns]
    assert len(names) == len(set(names)) and list(measures.columns()) == names


def test_the_docs_have_a_row_for_every_column_and_for_nothing_else() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text()
    table = page.split("| measure |")[1].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(measures.columns())


def test_every_protocol_reports_columns_that_a_measure_declares_and_each_once() -> None:
    modules = {path.stem for path in (ROOT / "ip2p" / "evaluation" / "benchmarks").glob("*.py")} - {"__init__"}
    assert len(modules) == len(benchmarks()) == len({benchmark.order for benchmark in benchmarks().values()})
    for protocol, benchmark in benchmarks().items():
        names = [column.name for column in protocol_columns(protocol)]
        own = [column.name for column in benchmark.columns]
        assert len(names) == len(set(names)) and set(names) <= {*measures.columns(), *own}
        assert set(own).isdisjoint(measures.columns()) and bool(own) == bool(benchmark.questions)


@pytest.fixture
def invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[measures.Measure]:
    """A measure whose only trace is a file in the folder of measures."""
    (tmp_path / "invented.py").write_text(INVENTED)
    monkeypatch.setattr(measures, "__path__", [*measures.__path__, str(tmp_path)])
    measures.measure_classes.cache_clear()
    measures.columns.cache_clear()
    (invented,) = (cls for cls in measures.measure_classes() if "invented" in cls.__module__)
    made = invented.from_setup(None)  # type: ignore[arg-type]
    assert made is not None
    yield made
    measures.measure_classes.cache_clear()
    measures.columns.cache_clear()


def test_a_file_in_the_folder_adds_a_metric_to_scores_figures_report_comparison_and_benchmark_tables(
    invented: measures.Measure, case: EditCase
) -> None:
    schema = measured_schema([invented])
    assert [str(schema.field(name).type) for name in ("invented", "odd")] == ["double", "bool"]
    images = [case.original_image] * 4
    rows: list[dict[str, Any]] = invented([case] * 4, images, images)
    records = [{"case": number, "edit_type": "add", **row} for number, row in enumerate(rows)]
    figures = metrics.summarise(records)
    assert (figures["invented"], figures["odd"], figures["by_type"]["add"]["invented"]) == (0.25, 0.5, 0.25)
    assert figures["odd_interval"] == list(metrics.wilson_interval(2, 4))
    table = figures_table({name: read_figures(figures) for name in ("model", "copy")})
    assert {"Invention ↓", "Odd ↑"} <= set(table.columns)
    cells = {title: cell and cell.value for title, cell in zip(table.columns, table.lines[0].cells, strict=True)}
    assert (cells["Invention ↓"], cells["Odd ↑"]) == ("0.250", "50\u00a0%")
    editors: dict[str, dict[str, Any]] = {"model": {"single": figures, "final": None}}
    for protocol in benchmarks():
        assert {"invented", "odd"} <= {column.name for column in known_columns(protocol, editors)}
    _, heading, line = describe({"protocol": "curve", "editors": editors, "n": 4})
    assert "Invention ↓" in heading and len(heading) == len(line)
