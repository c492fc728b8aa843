"""What is exported for another trainer is read back to the same pairs, and appears whole or not at all."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from ip2p.cli import main
from ip2p.dataset import exporting
from ip2p.dataset.exporting import export_dataset
from ip2p.dataset.layouts import LAYOUTS
from ip2p.images import IMAGE_TYPE, encode_mask, encode_png, plain_file
from ip2p.sources.pairs import SourceRow, read_source

NAMES = sorted(LAYOUTS)
TEXTS = ("original_prompt", "edit_prompt", "edited_prompt", "edit_type")
ODD = 'make it "red", now\nand \u2028 日本'
"""A text that tables must quote and that folders of .txt files may not split."""


def pixels(seed: int, size: tuple[int, int] = (24, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)


def encoded(seed: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, kind)
    return file.getvalue()


def shown(content: bytes | None) -> Any:
    """The pixels of a picture file, as lists."""
    return np.asarray(Image.open(io.BytesIO(content or b""))).tolist()


@dataclass(frozen=True)
class Given:
    """A dataset and the pairs that it holds, by split."""

    folder: Path
    pairs: dict[str, list[dict[str, Any]]]


def write_dataset(folder: Path, *, further: bool = False, kinds: Sequence[str] = ("PNG", "JPEG", "WEBP")) -> Given:
    """Writes parquet files of two splits with captions, formats that differ within a pair, and odd texts."""
    pairs: dict[str, list[dict[str, Any]]] = {}
    for split, numbers in (("train", range(5)), ("test", range(5, 7))):
        rows = []
        for number in numbers:
            row: dict[str, Any] = {
                "original_prompt": f"a scene, {number}",
                "original_image": encoded(10 * number, kinds[number % len(kinds)]),
                "edit_prompt": ODD if number == 1 else f"edit {number}",
                "edited_prompt": f"a red scene {number}",
                "edited_image": encoded(10 * number + 1, kinds[(number // 2) % len(kinds)]),
                "edit_type": "colour" if number % 2 else "",
            }
            if further and number != 2:
                row["reference_image_2"] = encoded(10 * number + 2)
                row["mask_image"] = encode_mask(encode_png(pixels(number) // 128 * 255))
            rows.append(row)
        pairs[split] = rows
        (folder / "data").mkdir(parents=True, exist_ok=True)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        types = {name: IMAGE_TYPE if name.endswith("image") or "image_" in name else pa.string() for name in columns}
        cells = [{name: as_cell(row.get(name)) for name in columns} | {"seed": 7} for row in rows]
        schema = pa.schema([*types.items(), ("seed", pa.int64())])
        pq.write_table(pa.Table.from_pylist(cells, schema=schema), folder / "data" / f"{split}-00000-of-00001.parquet")
    return Given(folder, pairs)


def as_cell(value: Any) -> Any:
    return {"bytes": value, "path": None} if isinstance(value, bytes) else value


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return write_dataset(tmp_path / "dataset")


def texts_of(row: SourceRow | dict[str, Any]) -> list[str]:
    values = row if isinstance(row, dict) else {name: getattr(row, name) for name in TEXTS}
    return [values[name] for name in TEXTS]


def export(given: Given, name: str, out: Path) -> Path:
    assert main(["dataset", "export", str(given.folder), "--to", name, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("name", NAMES)
def test_what_is_exported_is_imported_as_the_same_pairs(name: str, given: Given, tmp_path: Path) -> None:
    out = export(given, name, tmp_path / "out folder")
    for split, rows in given.pairs.items():
        read = list(read_source(str(out), split=split))
        assert [texts_of(row) for row in read] == [texts_of(row) for row in rows]
        for found, row in zip(read, rows, strict=True):
            for side in ("original_image", "edited_image"):
                assert shown(getattr(found, side)) == shown(row[side])
    note = json.loads((out / "export.json").read_text())
    assert (note["layout"], note["splits"], note["left_out"]) == (name, {"train": 5, "test": 2}, {})


@pytest.mark.parametrize("name", NAMES)
def test_a_second_reference_and_a_mask_go_out_and_come_back(name: str, tmp_path: Path) -> None:
    given = write_dataset(tmp_path / "dataset", further=True)
    out = export(given, name, tmp_path / "out")
    for split, rows in given.pairs.items():
        for found, row in zip(read_source(str(out), split=split), rows, strict=True):
            further = {column: row[column] for column in ("reference_image_2", "mask_image") if column in row}
            assert dict(found.further) == further


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"onetrainer", "simpletuner"}))
def test_pictures_are_exported_byte_for_byte(name: str, given: Given, tmp_path: Path) -> None:
    read = list(read_source(str(export(given, name, tmp_path / "out"))))
    for side in ("original_image", "edited_image"):
        assert [getattr(row, side) for row in read] == [row[side] for row in given.pairs["train"]]


@pytest.mark.parametrize("name", ["ai-toolkit", "onetrainer", "simpletuner"])
def test_folders_of_pictures_and_texts_need_no_table(name: str, given: Given, tmp_path: Path) -> None:
    out = export(given, name, tmp_path / "out")
    for table in out.rglob("metadata.jsonl"):
        table.unlink()
    for split, rows in given.pairs.items():
        read = list(read_source(str(out), split=split))
        prompts = [row["edit_prompt"] for row in rows]
        if name == "onetrainer":  # each line of a text would be a caption of its own
            prompts = [" ".join(prompt.splitlines()) for prompt in prompts]
        assert [row.edit_prompt for row in read] == prompts
        for found, row in zip(read, rows, strict=True):
            assert shown(found.original_image) == shown(row["original_image"])
            assert shown(found.edited_image) == shown(row["edited_image"])


def test_there_is_no_folder_for_pictures_that_no_pair_has(given: Given, tmp_path: Path) -> None:
    out = export(given, "simpletuner", tmp_path / "out")
    assert sorted(path.name for path in (out / "train").iterdir()) == ["control", "metadata.jsonl", "target"]


def test_a_folder_that_was_moved_is_still_read(given: Given, tmp_path: Path) -> None:
    out = export(given, "musubi", tmp_path / "out")
    moved = out.rename(tmp_path / "moved")
    read = list(read_source(str(moved)))
    assert [row.edited_image for row in read] == [row["edited_image"] for row in given.pairs["train"]]


def test_config_files_name_what_is_there(tmp_path: Path) -> None:
    given = write_dataset(tmp_path / "dataset", further=True)
    out = {name: export(given, name, tmp_path / name) for name in NAMES}
    job = yaml.safe_load((out["ai-toolkit"] / "train.yaml").read_text())
    (dataset,) = job["config"]["process"][0]["datasets"]
    assert len(dataset["control_path"]) == 2
    assert all(Path(path).is_dir() for path in (dataset["folder_path"], *dataset["control_path"]))
    (table,) = tomllib.loads((out["musubi"] / "musubi.toml").read_text())["datasets"]
    lines = [json.loads(line) for line in Path(table["image_jsonl_file"]).read_text().split("\n") if line]
    assert all(Path(line[key]).is_file() for line in lines for key in ("image_path", "control_path"))
    edited, *others = json.loads((out["simpletuner"] / "multidatabackend.json").read_text())
    shorter = min(pixels(0).shape[:2])
    assert {shorter} == {each["resolution"] for each in (edited, *others[:-1])}  # nothing is enlarged
    assert edited["dataset_type"] == "image"
    assert edited["conditioning_data"] == [each["id"] for each in others if each["dataset_type"] == "conditioning"]
    for each in (edited, *others[:-1]):
        folder = Path(each["instance_data_dir"])
        names = {path.name for path in folder.iterdir() if path.suffix != ".txt"}
        assert names and names <= {path.name for path in Path(edited["instance_data_dir"]).iterdir()}
    concepts = json.loads((out["onetrainer"] / "concepts.json").read_text())
    assert [(Path(each["path"]).name, each["type"]) for each in concepts] == [
        ("train", "STANDARD"),
        ("test", "VALIDATION"),
    ]
    assert all(Path(each["path"]).is_dir() for each in concepts)


def test_datasets_opens_image_folders_and_archives(given: Given, tmp_path: Path) -> None:
    from datasets import load_dataset

    cache = str(tmp_path / "cache")
    folder = load_dataset(str(export(given, "imagefolder", tmp_path / "folder")), cache_dir=cache)
    assert {split: len(rows) for split, rows in folder.items()} == {"train": 5, "test": 2}
    assert folder["train"]["edit_prompt"] == [row["edit_prompt"] for row in given.pairs["train"]]
    assert np.asarray(folder["test"][1]["edited_image"]).tolist() == shown(given.pairs["test"][1]["edited_image"])
    plain = write_dataset(tmp_path / "plain", kinds=("PNG",))
    archives = load_dataset(str(export(plain, "webdataset", tmp_path / "tars")), cache_dir=cache)
    assert [row["edit_prompt"] for row in archives["train"]["json"]] == [
        row["edit_prompt"] for row in plain.pairs["train"]
    ]
    assert np.asarray(archives["test"][0]["original_image.png"]).tolist() == shown(
        plain.pairs["test"][0]["original_image"]
    )


def test_an_export_can_be_imported_as_a_run_and_exported_again(given: Given, tmp_path: Path) -> None:
    out = export(given, "webdataset", tmp_path / "out")
    words = ["dataset", "import", str(out), str(tmp_path / "run"), "--split", "all", "--dataset.test-fraction", "0"]
    assert main(words) == 0
    again = Given(tmp_path / "run", {})
    read = read_source(str(export(again, "diffsynth", tmp_path / "again")))
    expected = [row for rows in given.pairs.values() for row in rows]
    by_caption = {row["original_prompt"]: row for row in expected}
    found = list(read)
    assert len(found) == len(expected)
    for row in found:
        assert texts_of(row)[:3] == texts_of(by_caption[row.original_prompt])[:3]
        assert row.edited_image == by_caption[row.original_prompt]["edited_image"]


def test_rows_that_cannot_be_used_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"original_image": as_cell(encoded(0)), "edit_prompt": "edit", "edited_image": as_cell(encoded(1))}
    rows = [good, good | {"edit_prompt": " "}, good | {"edited_image": as_cell(b"no picture")}, good]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    words = ["dataset", "export", str(tmp_path / "train.parquet"), "--out", str(tmp_path / "out")]
    assert main([*words, "--to", "ai-toolkit"]) == 0
    assert "2 train, 1 no instruction, 1 image does not decode" in capsys.readouterr().out
    assert [path.name for path in sorted((tmp_path / "out" / "train" / "target").glob("*.txt"))] == [
        "00000000.txt",
        "00000001.txt",
    ]
    pq.write_table(pa.Table.from_pylist(rows[1:3]), tmp_path / "train.parquet")
    assert main([*words, "--to", "musubi"]) == 2
    assert "has no usable pair: 1 no instruction, 1 image does not decode" in capsys.readouterr().err
    assert len(list(read_source(str(tmp_path / "out")))) == 2  # the earlier export stays
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "train.parquet"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["gone", "--to", "musubi", "--out", "out"], "dataset gone does not exist"),
        (["dataset", "--to", "musubbi", "--out", "out"], "unknown layout musubbi. Did you mean musubi?"),
        (["dataset", "--to", "musubi", "--out", "foreign"], "foreign is not empty and holds no export"),
        (["dataset", "--to", "musubi", "--out", "foreign/note.txt"], "note.txt is a file"),
        (["unfinished", "--to", "musubi", "--out", "out"], "unfinished has no dataset yet"),
        (["dataset", "--to", "musubi", "--out", "out", "--split", "validation"], "of the split validation"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(
    words: list[str], error: str, given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "note.txt").write_text("mine")
    (tmp_path / "unfinished" / "triplets").mkdir(parents=True)
    (tmp_path / "unfinished" / "config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    assert main(["dataset", "export", *words]) == 2
    message = capsys.readouterr().err
    assert error in message and message.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


KILLED = """
import os, signal, sys
from ip2p.dataset.layouts import LAYOUTS
from ip2p.dataset import exporting
checked, left = exporting.plain_file, int(sys.argv[3])
def dies(content):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return checked(content)
exporting.plain_file = dies
exporting.export_dataset(sys.argv[1], LAYOUTS["ai-toolkit"], exporting.Path(sys.argv[2]))
"""


def test_a_killed_export_leaves_the_earlier_one_and_the_next_is_whole(given: Given, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(given.folder), str(out), "12"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    assert not out.exists()
    export(given, "webdataset", out)
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    export(given, "ai-toolkit", out)
    assert len(list(read_source(str(out)))) == 5 and not list(out.rglob("*.tar"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "out"]


STOPPED = """
import os, signal, sys
from ip2p.dataset.layouts import LAYOUTS, webdataset
from ip2p.dataset import exporting
exporting.AT_ONCE, webdataset.ARCHIVE_BYTES = 2, 5000
checked, most, num = exporting.plain_file, int(sys.argv[4]), 0
def counting(content):
    global num
    num += 1
    if num == most:
        os.kill(os.getpid(), signal.SIGKILL)
    return checked(content)
exporting.plain_file = counting
split = sys.argv[5] if len(sys.argv) > 5 else None
print(exporting.export_dataset(sys.argv[1], LAYOUTS[sys.argv[3]], exporting.Path(sys.argv[2]), split=split))
print(num)
"""
"""Exports with small stretches and archives; kills itself at a picture, or says at the end how many it has checked."""


def start(given: Given, out: Path, name: str, kill_at: int = 0, split: str = "") -> list[str] | int:
    command = [
        sys.executable,
        "-c",
        STOPPED,
        str(given.folder),
        str(out),
        name,
        str(kill_at),
        *([split] if split else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode or done.stdout.splitlines()


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["ai-toolkit", "musubi", "webdataset"])
def test_a_killed_export_goes_on_to_the_same_bytes_and_keeps_what_is_whole(
    name: str, given: Given, tmp_path: Path
) -> None:
    path = next((given.folder / "data").glob("train-*"))
    rows = pq.read_table(path)
    broken = rows.slice(1, 1).set_column(2, "edit_prompt", pa.array([" "]))  # left out, before the kill
    pq.write_table(pa.concat_tables([rows.slice(0, 1), broken, rows, rows]), path)
    apart = tmp_path / "untouched" / "out"
    counts, num_checked = start(given, apart, name)  # type: ignore[misc]
    assert int(num_checked) == 2 * (11 + 2)
    out = tmp_path / "out"
    assert start(given, out, name, kill_at=17) == -9
    assert not out.exists() and (tmp_path / ".out.partial").is_dir()
    assert start(given, out, name, kill_at=9) == -9
    again, num_again = start(given, out, name)  # type: ignore[misc]
    assert again == counts and "1 no instruction" not in again and "'no instruction': 1" in again
    assert 0 < int(num_again) <= 14
    expected = {
        path: content.replace(str(apart).encode(), str(out).encode()) for path, content in files_in(apart).items()
    }
    assert files_in(out) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "out", "untouched"]


def test_what_a_kill_left_of_another_export_or_of_other_data_is_not_kept(given: Given, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert start(given, out, "ai-toolkit", kill_at=9) == -9
    assert start(given, out, "ai-toolkit", split="train") == ["{'train': 5}", "10"]
    assert start(given, out, "ai-toolkit", kill_at=9) == -9
    path = next((given.folder / "data").glob("train-*"))
    pq.write_table(pq.read_table(path).slice(1), path)
    assert start(given, out, "ai-toolkit") == ["{'train': 4, 'test': 2}", "12"]
    assert len(list((out / "train" / "target").glob("*.txt"))) == 4


def test_two_exports_into_one_folder_are_refused(given: Given, tmp_path: Path) -> None:
    with exporting.new_folder(tmp_path / "out"):
        code = "import sys; from ip2p.cli import main; sys.exit(main(sys.argv[1:]))"
        words = ["dataset", "export", str(given.folder), "--to", "musubi", "--out", str(tmp_path / "out")]
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "another process exports into" in done.stderr


def test_archives_are_cut_by_size_and_ordered(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ip2p.dataset.layouts import webdataset

    monkeypatch.setattr(webdataset, "ARCHIVE_BYTES", 5000)
    out = export(given, "webdataset", tmp_path / "out")
    files = sorted((out / "train").glob("*.tar"))
    assert len(files) > 1
    with tarfile.open(files[0]) as archive:
        keys = list(dict.fromkeys(name.partition(".")[0] for name in archive.getnames()))
    assert keys == [f"{number:08d}" for number in range(len(keys))]
    assert [row.edit_prompt for row in read_source(str(out))] == [row["edit_prompt"] for row in given.pairs["train"]]


def test_further_columns_are_kept_beside_the_texts(given: Given, tmp_path: Path) -> None:
    out = export(given, "simpletuner", tmp_path / "out")
    lines = [json.loads(line) for line in (out / "train" / "metadata.jsonl").read_text().split("\n") if line]
    assert [line["seed"] for line in lines] == [7] * 5


def test_memory_holds_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"original_image": as_cell(encoded(0)), "edit_prompt": f"{number}", "edited_image": as_cell(encoded(1))}
        for number in range(200)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    most = read = written = 0
    folder = tmp_path / "out"

    def counting(content: bytes) -> Any:
        nonlocal read, most, written
        read += 1
        written = len(list((tmp_path / ".out.partial" / "train" / "target").glob("*.txt")))
        most = max(most, read // 2 - written)
        return plain_file(content)

    monkeypatch.setattr(exporting, "plain_file", counting)
    export_dataset(str(tmp_path / "train.parquet"), LAYOUTS["ai-toolkit"], folder)
    assert read == 400 and most <= 2 * exporting.AT_ONCE


@pytest.mark.parametrize("name", NAMES)
def test_the_docs_have_a_row_and_the_starting_line_of_each_layout(name: str) -> None:
    page = (Path(__file__).parent.parent / "docs" / "exchange.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    assert LAYOUTS[name].start in row and f"{LAYOUTS[name].trainer}:" in row
