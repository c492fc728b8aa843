"""What words name, which files are of a split, and how the rows of every form are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p.images import encode_png
from ip2p.sources.files import read_json_file
from ip2p.sources.hub import HubTable, lay_out
from ip2p.sources.location import data_files, held_out_files, locate, split_files
from ip2p.sources.pairs import read_source
from ip2p.sources.rows import open_table, read_file
from ip2p.sources.tables import ParquetTable

PICTURE = encode_png(np.zeros((4, 6, 3), np.uint8))


def write_pairs(path: Path, num: int = 1, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cell = {"bytes": PICTURE, "path": None}
    rows = [
        {"original_image": cell, "edit_prompt": f"edit {number}", "edited_image": cell, **more} for number in range(num)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def counts(source: Path, *splits: str) -> list[int]:
    return [len(list(read_source(str(source), split=split))) for split in splits]


def test_one_rule_says_what_a_word_names(tmp_path: Path) -> None:
    (tmp_path / "odd [name] ü").mkdir()
    kinds = [
        locate(word).kind for word in (tmp_path / "odd [name] ü", tmp_path / "*.parquet", "s3://b/x", "owner/name")
    ]
    assert kinds == ["path", "glob", "url", "hub"]
    for word in ("typo", "a/b/c", "./owner/name", "owner/name.parquet", "owner/na me"):
        with pytest.raises(ValueError, match=r"does not exist\. Give a folder"):
            locate(word)
    with pytest.raises(ValueError, match="no data given"):
        locate("")


@pytest.mark.parametrize(
    "layout", ["default/{}/0000.parquet", "{}.parquet", "data/{}-00000-of-00001.parquet", "x-{}_1.parquet"]
)
def test_a_split_is_named_by_a_file_or_a_folder(layout: str, tmp_path: Path) -> None:
    for name, num in (("train", 4), ("test", 2), ("dev", 3)):
        write_pairs(tmp_path / layout.format(name), num)
    assert counts(tmp_path, "train", "test", "validation", "val") == [4, 2, 3, 3]
    assert len(held_out_files(locate(tmp_path))) == 2


def test_a_split_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="holds no parquet file of the split test"):
        read_source(str(tmp_path), split="test")
    write_pairs(tmp_path / "plain" / "latest.parquet")
    with pytest.raises(ValueError, match="of the split test"):
        read_source(str(tmp_path / "plain"), split="test")
    assert len(open_table(locate(tmp_path / "plain"), split="test", any_split=True)) == 1


def test_hidden_files_are_not_data_and_linked_ones_are(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "there" / "train-0.parquet")
    folder = tmp_path / "data"
    for name in (
        ".train-1.parquet",
        "._train-0.parquet",
        ".ipynb_checkpoints/train-0.parquet",
        "__MACOSX/train-2.parquet",
    ):
        write_pairs(folder / name)
    (folder / "train-9.parquet").symlink_to(data)
    (folder / "linked").symlink_to(data.parent)
    (folder / "linked-back").symlink_to(folder)
    assert [path.relative_to(folder).as_posix() for path in data_files(locate(folder))] == [
        "linked/train-0.parquet",
        "train-9.parquet",
    ]


def test_shards_may_be_empty_and_differ_in_columns_that_nobody_needs(tmp_path: Path) -> None:
    first = write_pairs(tmp_path / "train-0.parquet", 3)
    pq.write_table(pq.read_table(first).slice(0, 0), tmp_path / "train-1.parquet")
    write_pairs(tmp_path / "train-2.parquet", 2, mask_image={"bytes": PICTURE, "path": None}, edit_type="colour")
    rows = list(read_source(str(tmp_path)))
    assert [row.edit_type for row in rows] == ["", "", "", "colour", "colour"]
    pq.write_table(pq.read_table(first).drop_columns(["edited_image"]), tmp_path / "train-3.parquet")
    with pytest.raises(ValueError, match=r"train-3\.parquet has no column edited_image"):
        read_source(str(tmp_path))


def test_plain_bytes_dictionaries_and_paths_beside_the_table_are_pictures(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(PICTURE)
    columns = {
        "original_image": pa.array([PICTURE, PICTURE], pa.large_binary()),
        "edit_prompt": pa.array(["a", "a"]).dictionary_encode(),
        "edited_image": pa.array([{"bytes": None, "path": "one.png"}, {"bytes": None, "path": "gone.png"}]),
    }
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    rows = list(read_source(str(tmp_path)))
    assert [(row.original_image, row.edit_prompt, row.edited_image) for row in rows] == [
        (PICTURE, "a", PICTURE),
        (PICTURE, "a", None),
    ]


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    whole = write_pairs(tmp_path / "whole.parquet", 50).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.parquet cannot be read as parquet.*Remove it or write it again"):
        ParquetTable([tmp_path / "whole.parquet", tmp_path / "cut.parquet"])
    (tmp_path / "bad.parquet").write_bytes(whole[:10] + bytes(60) + whole[70:])
    with pytest.raises(ValueError, match=r"bad\.parquet cannot be read as parquet"):
        list(ParquetTable([tmp_path / "bad.parquet"]).read(["original_image"]))


def test_a_row_is_found_by_its_number_in_files_and_once_laid_out(tmp_path: Path) -> None:
    files = [write_pairs(tmp_path / f"{number}.parquet", 3) for number in range(2)]
    table = ParquetTable(files)
    laid_out = HubTable(lay_out(table, ["original_image"], ["edit_prompt"], str(tmp_path / "cache")), "pairs")
    for number, row in enumerate(table.read(["original_image", "edit_prompt"])):
        for other in (table.row(number, ["original_image", "edit_prompt"]), laid_out.row(number, [])):
            assert (other.text("edit_prompt"), other.picture("original_image")) == (f"edit {number % 3}", PICTURE)
        assert row.where.endswith(f"{number // 3}.parquet row {number % 3 + 1}")


def test_lines_end_at_a_line_feed_alone(tmp_path: Path) -> None:
    texts = ["a\u2028b", "c\u2029d", "e\u0085f"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode())
    assert [value["text"] for _, value in read_json_file(tmp_path / "x.jsonl")] == texts
    (tmp_path / "x.jsonl").write_text('{"text": 1}\n\n{"text"')
    with pytest.raises(ValueError, match=r"x\.jsonl line 3 is not valid JSON"):
        read_json_file(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_text('[{"text": 1}]')
    with pytest.raises(ValueError, match=r"x\.jsonl line 1 must hold one JSON object, got list"):
        list(read_file(locate(tmp_path / "x.jsonl")))


def test_a_csv_file_has_huge_cells_and_quoted_lines_but_no_open_quote(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f'\ufeffcaption,more\n"two\nlines",{"x" * 200_000}\nlast,"q"\n')
    assert [row.values["caption"] for row in read_file(locate(path))] == ["two\nlines", "last"]
    path.write_text('caption\na "red" car\n"a blue car\nb\n')
    with pytest.raises(ValueError, match=r"x\.csv row 2 opens a quote that is never closed"):
        list(read_file(locate(path)))


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv", "metadata.jsonl"])
def test_tables_name_picture_files_beside_them(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "odd [name]"
    folder.mkdir()
    (folder / "one.png").write_bytes(PICTURE)
    suffix = "_file_name" if name.startswith("metadata") else ""
    row = {f"source_image{suffix}": "one.png", f"edited_image{suffix}": "one.png", "edit_prompt": "make it red"}
    text = json.dumps(row) if name.endswith("jsonl") else f"{','.join(row)}\n{','.join(row.values())}\n"
    (folder / name).write_text(text)
    (pair,) = read_source(str(folder if suffix else folder / name), {**OURS})
    assert (pair.original_image, pair.edited_image, pair.edit_prompt) == (PICTURE, PICTURE, "make it red")


OURS = {"original_image": "source_image", "edited_image": "edited_image", "edit_prompt": "edit_prompt"}


def test_a_pattern_names_its_files_itself(tmp_path: Path) -> None:
    write_pairs(tmp_path / "test-0.parquet")
    (tmp_path / "test-1.txt").touch()
    assert len(split_files(locate(tmp_path / "test-*"), "train")) == 1
