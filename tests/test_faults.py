"""Faults of 0.1.0: what the dataset card's advice and the report's pairs must say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p import store
from ip2p.config import FilteringConfig, PipelineConfig, Thresholds
from ip2p.dataset import write_dataset
from ip2p.rendering.table import as_row
from ip2p.report import write_report
from tests.example_run import synthetic_config, write_synthetic_run
from tests.test_dataset import image_of, scored
from tests.test_evaluation import trained

__all__ = ["trained"]

CODES = ("low_contrast", "low_ssim", "low_dino", "high_image", "high_ssim", "high_dino", "high_nsfw")
MEASURED = {"contrast": 0.0625, "nsfw": 0.4375}


def advice(tmp_path: Path, filtering: FilteringConfig, reasons: Mapping[str, str]) -> str:
    """What a user is told of a run whose candidates were all rejected: by edit type, the reason against its."""
    config = PipelineConfig(out=tmp_path / "run", filtering=filtering)
    rows = []
    for number, (edit_type, reason) in enumerate(reasons.items()):
        images = {name: image_of(number, side) for side, name in enumerate(("original_image", "edited_image"))}
        row = as_row(scored(0, number, 0, accept=False))
        rows.append({**row, "edit_type": edit_type, "reason": reason, "accepted": False, **images})
    for stage in ("candidates", "pairs"):
        path = store.RunFolder(config.out).shard(stage, 0)
        store.write_shard(path, pa.Table.from_pylist(rows), fingerprint="test", seconds=0.0)
    with pytest.raises(ValueError, match="no pair was accepted") as refused:
        write_dataset(config)
    return str(refused.value)


@pytest.mark.parametrize("name", ["image", "ssim", "dino", "nsfw"])
def test_a_maximum_that_rejects_everything_is_to_be_raised(name: str, tmp_path: Path) -> None:
    limits = Thresholds().with_bounds({f"max_{name}": 0.25})
    said = advice(tmp_path, FilteringConfig(thresholds=limits), {"colour": f"high_{name}"})
    assert re.search(rf"(?i)\braise\b((?!\blower\b).)*max_{name} \(now 0\.25\)", said), said


def test_the_threshold_that_is_quoted_is_the_one_that_rejected(tmp_path: Path) -> None:
    filtering = FilteringConfig(
        thresholds=Thresholds(direction=0.125), per_edit_type={"colour": Thresholds(direction=0.625)}
    )
    said = advice(tmp_path, filtering, {"colour": "low_direction"})
    assert "per_edit_type" in said and "0.625" in said and "0.125" not in said, said


class Words(HTMLParser):
    """Collects the words that a reader of a page sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.hidden = 0
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)


def set_columns(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Changes columns of a shard."""
    table = pq.read_table(path)
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, pa.array(values))
    store.write_shard(path, table, fingerprint="x", seconds=0.0)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a run whose rejected pairs have every reason of the scores that are asked for seldom."""
    config = write_synthetic_run(synthetic_config(tmp_path_factory.mktemp("faults") / "run"))
    for stage in ("candidates", "pairs"):
        path = store.RunFolder(config.out).shard(stage, 0)
        reasons = pq.read_table(path, columns=["reason"])["reason"].to_pylist()
        named = [reason and CODES[number % len(CODES)] for number, reason in enumerate(reasons)]
        set_columns(path, {"reason": named, **{name: [value] * len(named) for name, value in MEASURED.items()}})
    write_report(config)
    return (config.out / "report" / "index.html").read_text()


def test_the_page_has_pairs_of_every_reason(page: str) -> None:
    assert all(f'data-verdict="{code}"' in page for code in CODES)


@pytest.mark.parametrize("code", CODES)
def test_a_reason_is_said_in_words(code: str, page: str) -> None:
    assert not [words for words in Words(page).words if code in words]


@pytest.mark.parametrize("name", list(MEASURED))
def test_every_score_of_a_pair_is_on_its_card_and_can_be_filtered_by(name: str, page: str) -> None:
    section = page.split('<section id="pairs"')[1].split("</section>")[0]
    assert f'data-{name}="{MEASURED[name]:g}' in section
