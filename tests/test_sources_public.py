"""Public sets of pairs are read in the form in which they are published: tables, folders, archives, conversations."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ip2p.sources.files import Unreadable
from ip2p.sources.pairs import SourceRow, read_source

COLOURS = ("red", "green", "blue", "yellow")


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 8), COLOURS[number % len(COLOURS)]).save(file, "JPEG")
    return file.getvalue()


def write_pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))


def write_lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def nhr_edit(folder: Path) -> Path:
    """`train/metadata.jsonl` beside `images/00/`, with the names of both files in each line."""
    names = ("images/00/image_1_original.jpg", "images/00/image_1_edited_1.jpg")
    write_pictures(folder / "train", *names)
    row = {"source_file_name": names[0], "edited_file_name": names[1], "edit_instruction": "do it", "category": "add"}
    write_lines(folder / "train" / "metadata.jsonl", row | {"sample_id": "1", "style": "photo", "img_width": 12})
    return folder


def unicedit(folder: Path) -> Path:
    """Parquet with instructions in two languages, a task and a subtask."""
    cells = {name: {"bytes": picture(number), "path": None} for number, name in enumerate(("src_image", "edit_image"))}
    texts = {"key": "0f", "edit_task": "Object Editing", "edit_subtask": "add", "prompt_en": "do it", "prompt_cn": "做"}
    pq.write_table(pa.Table.from_pylist([texts | cells]), folder / "train-00000-of-00681.parquet")
    return folder


def scaleedit(folder: Path) -> Path:
    """Parquet of plain binary pictures in a folder per task, whose names tell no split."""
    (folder / "2.1_object_addition").mkdir()
    row = {"id": 0, "edit_task": "add", "edit_instruction": "do it", "source_image_width": 12}
    pictures = {"source_image": picture(0), "edited_image": picture(1)}
    pq.write_table(pa.Table.from_pylist([row | pictures]), folder / "2.1_object_addition" / "addition_0000.parquet")
    return folder


def gpt_image_edit(folder: Path) -> Path:
    """One JSON array of conversations, with the pictures' paths relative to the folder."""
    write_pictures(folder, "input/1.png", "output/1.png")
    turns = [{"from": "human", "value": "<image>\ndo it"}, {"from": "gpt", "value": "<image>"}]
    rows = [{"image": ["input/1.png", "output/1.png"], "conversations": turns, "edit_type": "add"}]
    (folder / "hqedit_gpt_edit.json").write_text(json.dumps(rows))
    return folder / "hqedit_gpt_edit.json"


def x2edit(folder: Path) -> Path:
    """Archives of `KEY.1.0.jpg`, `KEY.2.jpg` and `KEY.json`."""
    told = json.dumps({"instruction": "do it", "task": "add", "label": "step1x", "score_7b": "[5, 5]"}).encode()
    write_tar(folder / "00001.tar", {"7.1.0.jpg": picture(0), "7.2.jpg": picture(1), "7.json": told})
    return folder


def x2edit_with_dots(folder: Path) -> Path:
    """The same with a dot more before the number, and one original that is not numbered."""
    told = json.dumps({"instruction": "do it", "task": "add"}).encode()
    return write_tar(folder / "00001.tar", {"a/7..1.jpg": picture(0), "a/7..2.jpg": picture(1), "a/7.json": told})


def pico_banana(folder: Path) -> Path:
    """JSON lines with the address of the original, and the place where the user's copy lies."""
    write_pictures(folder, "openimages/train_0/00.jpg", "images/positive-edit/1.png")
    row = {"open_image_input_url": "https://c1.staticflickr.com/1.jpg", "text": "do it", "summarized_text": "do"}
    row |= {"output_image": "images/positive-edit/1.png", "local_input_image": "openimages/train_0/00.jpg"}
    lost = row | {"local_input_image": None}
    return write_lines(folder / "sft_with_local_source_image_path.jsonl", row | {"edit_type": "add"}, lost)


def musubi(folder: Path) -> Path:
    """JSON lines with absolute paths."""
    write_pictures(folder, "c/1.png", "t/1.png")
    row = {"image_path": str(folder / "t/1.png"), "control_path_0": str(folder / "c/1.png"), "caption": "do it"}
    return write_lines(folder / "pairs.jsonl", row | {"edit_type": "add"})


def diffsynth_csv(folder: Path) -> Path:
    """An image folder with a csv table."""
    write_pictures(folder, "edit/1.jpg", "image/1.jpg")
    (folder / "metadata.csv").write_text("image,prompt,edit_image,edit_type\nimage/1.jpg,do it,edit/1.jpg,add\n")
    return folder


def diffsynth_json(folder: Path) -> Path:
    """An image folder with a JSON table that lists references."""
    write_pictures(folder, "edit/1.jpg", "image/1.jpg", "edit/2.jpg")
    row = {"image": "image/1.jpg", "edit_image": ["edit/1.jpg", "edit/2.jpg"], "prompt": "do it", "edit_type": "add"}
    (folder / "metadata.json").write_text(json.dumps([row]))
    return folder


def before_and_after(folder: Path) -> Path:
    """Two folders under other names, with texts beside the edited pictures."""
    write_pictures(folder, "before/1.png", "after/1.jpg")
    (folder / "after" / "1.txt").write_text("do it\n")
    return folder


FORMS: dict[str, Callable[[Path], Path]] = {
    form.__name__: form
    for form in (
        nhr_edit,
        unicedit,
        scaleedit,
        gpt_image_edit,
        x2edit,
        x2edit_with_dots,
        pico_banana,
        musubi,
        diffsynth_csv,
        diffsynth_json,
        before_and_after,
    )
}


def read(source: Path) -> list[SourceRow]:
    return list(read_source(str(source)))


@pytest.mark.parametrize("name", FORMS)
def test_a_public_form_of_pairs_is_read_without_naming_columns(name: str, tmp_path: Path) -> None:
    row = read(FORMS[name](tmp_path))[0]
    assert (row.original_image, row.edit_prompt, row.edited_image) == (picture(0), "do it", picture(1))
    assert row.edit_type == ("" if name == "before_and_after" else "add")
    assert dict(row.further) == ({"reference_image_2": picture(2)} if name == "diffsynth_json" else {})


def test_an_original_that_was_never_downloaded_is_a_row_without_a_picture(tmp_path: Path) -> None:
    assert [row.original_image for row in read(pico_banana(tmp_path))] == [picture(0), None]


def test_archives_keep_their_order_and_may_lack_files(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for number in range(12):
        members[f"{number:02d}.original_image.jpg"] = picture(number)
        if number != 5:
            members[f"{number:02d}.edited_image.jpg"] = picture(number + 1)
        members[f"{number:02d}.json"] = json.dumps({"edit_prompt": f"edit {number}"}).encode()
    rows = read(write_tar(tmp_path / "train-0.tar", members))
    assert [row.edit_prompt for row in rows] == [f"edit {number}" for number in range(12)]
    assert [number for number, row in enumerate(rows) if row.edited_image is None] == [5]
    assert rows[7].edited_image == picture(8)


@pytest.mark.parametrize("damage", ["cut", "another file", "compressed"])
def test_a_broken_archive_is_named(damage: str, tmp_path: Path) -> None:
    import gzip

    whole = x2edit(tmp_path) / "00001.tar"
    content = whole.read_bytes()
    damaged = {"cut": content[:700], "another file": b"text" * 400, "compressed": gzip.compress(content)}
    whole.write_bytes(damaged[damage])
    with pytest.raises(Unreadable, match=r"00001\.tar cannot be read as a tar archive.*write it again"):
        read(whole)


def test_a_table_that_is_no_array_is_named(tmp_path: Path) -> None:
    for content, error in (('{"image": 1}', "must hold one JSON array"), ("[1", "is not valid JSON")):
        (tmp_path / "pairs.json").write_text(content)
        with pytest.raises(Unreadable, match=error):
            read(tmp_path / "pairs.json")


def test_every_split_of_folders_is_read_by_its_name_or_at_once(tmp_path: Path) -> None:
    for split, texts in (("train", "ab"), ("test", "c")):
        for number, text in enumerate(texts):
            write_pictures(tmp_path / split, f"control/{number}.png", f"target/{number}.png")
            (tmp_path / split / "target" / f"{number}.txt").write_text(text)
    read_splits = {split: [row.edit_prompt for row in read_source(str(tmp_path), split=split)] for split in SPLITS}
    assert read_splits == {"train": ["a", "b"], "test": ["c"], "all": ["c", "a", "b"]}


SPLITS = ("train", "test", "all")
