"""Datasets from elsewhere, with other names for the same columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p.images import encode_image
from ip2p.sources.columns import FURTHER_PICTURES, KNOWN_SCHEMAS, PICTURES, guess_columns
from ip2p.sources.location import locate, split_files
from ip2p.sources.pairs import read_source
from ip2p.sources.rows import open_table

PICTURE = encode_image(np.zeros((4, 6, 3), np.uint8), "png", 95)


def write_files(folder: Path, columns: dict[str, str], *, names: tuple[str, ...] = ("train-0.parquet",)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image = {"bytes": PICTURE, "path": None}
    row = {theirs: image if ours in PICTURES else f"a text for {ours}" for ours, theirs in columns.items()}
    for name in names:
        pq.write_table(pa.Table.from_pylist([row | {"other": 1}] * 2), folder / name)
    return folder


@pytest.mark.parametrize("name", KNOWN_SCHEMAS)
def test_each_known_schema_is_guessed_and_opens_with_our_names_and_images(name: str, tmp_path: Path) -> None:
    columns = KNOWN_SCHEMAS[name]
    assert guess_columns([*columns.values(), "other"]) == columns
    rows = list(read_source(str(write_files(tmp_path / "data", columns))))
    assert len(rows) == 2 and rows[0].original_image == rows[1].edited_image == PICTURE
    assert rows[0].further == {ours: PICTURE for ours in columns if ours in FURTHER_PICTURES}
    texts = {ours: getattr(rows[0], ours) for ours in columns if ours not in PICTURES}
    assert texts == {ours: f"a text for {ours}" for ours in texts}


def test_a_mapping_of_one_s_own_is_taken(tmp_path: Path) -> None:
    mapping = {"original_image": "before", "edited_image": "after", "edit_prompt": "say"}
    folder = write_files(tmp_path / "data", mapping)
    assert [row.edit_prompt for row in read_source(f"{folder}/*.parquet", mapping)] == ["a text for edit_prompt"] * 2
    with pytest.raises(ValueError, match=r"no column tell \(for edit_prompt\); it has after, before, other, say"):
        read_source(str(folder), {**mapping, "edit_prompt": "tell"})


def test_unknown_columns_are_an_error_that_names_them() -> None:
    with pytest.raises(ValueError, match="columns after, before. Name the columns that hold original_image"):
        guess_columns(["before", "after"])


def test_the_files_of_the_split_are_chosen_and_files_without_one_count_as_training(tmp_path: Path) -> None:
    columns = KNOWN_SCHEMAS["osunlp/MagicBrush"]
    both = locate(write_files(tmp_path / "both", columns, names=("train-0.parquet", "test-0.parquet", "odd.parquet")))
    assert [path.name for path in split_files(both, "train")] == ["train-0.parquet"]
    assert [path.name for path in split_files(both, "test")] == ["test-0.parquet"]
    plain = locate(write_files(tmp_path / "plain", columns, names=("0.parquet", "test-0.parquet")))
    assert [path.name for path in split_files(plain, "train")] == ["0.parquet"]
    assert open_table(plain).names == [*columns.values(), "other"]


def test_a_folder_without_parquet_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no parquet file of the split train\. Give a folder of parquet files"):
        read_source(str(tmp_path))
