"""Datasets from elsewhere, with other names for the same columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image

from ip2p.images import encode_image
from ip2p.sources.columns import KNOWN_SCHEMAS, guess_columns, open_dataset, parquet_files, read_columns


def write_files(folder: Path, columns: dict[str, str], *, names: tuple[str, ...] = ("train-0.parquet",)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image = {"bytes": encode_image(np.zeros((4, 6, 3), np.uint8), "png", 95), "path": None}
    row = {theirs: image if ours.endswith("image") else f"a text for {ours}" for ours, theirs in columns.items()}
    for name in names:
        pq.write_table(pa.Table.from_pylist([row | {"other": 1}] * 2), folder / name)
    return folder


@pytest.mark.parametrize("name", KNOWN_SCHEMAS)
def test_each_known_schema_is_guessed_and_opens_with_our_names_and_images(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    columns = KNOWN_SCHEMAS[name]
    assert guess_columns([*columns.values(), "other"]) == columns
    dataset = open_dataset(write_files(tmp_path / "data", columns))
    assert len(dataset) == 2 and set(dataset.column_names) == {*columns, "other"}
    assert isinstance(dataset.features["edited_image"], Image) and dataset[0]["original_image"].size == (6, 4)
    assert dataset[0]["edit_prompt"] == "a text for edit_prompt"


def test_a_mapping_of_one_s_own_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    mapping = {"original_image": "before", "edited_image": "after", "edit_prompt": "say"}
    folder = write_files(tmp_path / "data", mapping)
    assert set(open_dataset(folder / "*.parquet", mapping).column_names) == {*mapping, "other"}
    with pytest.raises(ValueError, match=r"no column tell \(for edit_prompt\); it has after, before, other, say"):
        open_dataset(folder, {**mapping, "edit_prompt": "tell"})


def test_unknown_columns_are_an_error_that_names_them() -> None:
    with pytest.raises(ValueError, match="columns after, before. Name the columns that hold original_image"):
        guess_columns(["before", "after"])


def test_the_files_of_the_split_are_chosen_and_files_without_one_count_as_any(tmp_path: Path) -> None:
    columns = KNOWN_SCHEMAS["osunlp/MagicBrush"]
    both = write_files(tmp_path / "both", columns, names=("train-0.parquet", "test-0.parquet", "odd.parquet"))
    assert [path.name for path in parquet_files(both)] == ["train-0.parquet"]
    assert [path.name for path in parquet_files(both, "test")] == ["test-0.parquet"]
    plain = write_files(tmp_path / "plain", columns, names=("0.parquet", "test-0.parquet"))
    assert [path.name for path in parquet_files(plain)] == ["0.parquet"]
    assert read_columns(plain) == [*columns.values(), "other"]


def test_a_folder_without_parquet_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="holds no parquet file of the split train. Give a folder, a glob or a hub id."
    ):
        open_dataset(tmp_path)
