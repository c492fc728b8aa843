"""Whatever people bring, to every command that takes it: pictures, texts, and names of files and folders.

A combination ends right, with values that a plain computation gives, or in a named reject, or in one line and exit
code 2; never in a traceback, and with nothing half written. `tests/input_kinds.py` generates the kinds.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline
from gradio.components import Image as Upload
from gradio.data_classes import ImageData
from PIL import Image

from ip2p.app.browsing import open_pairs, read_sides
from ip2p.app.page import build_page
from ip2p.cli import main
from ip2p.cli.data import PairsImport, import_pairs
from ip2p.config import CleaningConfig, PipelineConfig, PromptsConfig, TrainingConfig
from ip2p.console import is_mistake, one_line
from ip2p.evaluation.benchmark_cases import read_benchmark
from ip2p.evaluation.cases import hold_out_cases
from ip2p.images import Array, open_pixels
from ip2p.models.stable_diffusion import widen_conv_in
from ip2p.prompts.captions import ReadyLine, read_captions
from ip2p.sources.location import SPLITS
from ip2p.sources.pairs import read_source
from ip2p.training.data import open_rows
from ip2p.training.decoding import decode_pair
from ip2p.training.validation import read_pictures
from tests.input_kinds import (
    NAMES,
    PICTURES,
    PLAIN,
    SHARDS,
    SIDE,
    TABLE,
    TEXT_ROWS,
    TEXTS,
    encode_rows,
    parquet_of,
)

Outcome = Any
"""What a command made of its input, or the line that it ended with."""
Action = Callable[[Path, Path], Outcome]
"""Carries a command out on a source, writing into a folder."""
SLOW = ("dataset import", "edit")
"""Commands whose further combinations are left out of the fast tests."""


def commands(*names: str) -> list[Any]:
    """Marks the parameters of slow commands."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in names]


TRAINING = TrainingConfig(
    pretrained_model_name_or_path="unused",
    resolution=SIDE,
    original_image_column="original_image",
)


@pytest.fixture(scope="module")
def editor(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an editor with random weights."""
    parts = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None).components
    parts["unet"] = widen_conv_in(parts["unet"], 8)
    parts.pop("image_encoder", None)
    folder = tmp_path_factory.mktemp("editor")
    StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def ip2p(*words: object) -> None:
    """Runs the command; raises the one line that it ends with if it was asked for something wrong."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main([str(word) for word in words])
    errors = [line for line in said.getvalue().split("\n") if line.startswith("ip2p: error: ")]
    assert "Traceback" not in said.getvalue()
    assert (code, len(errors)) in ((0, 0), (2, 1)), said.getvalue()
    if errors:
        raise ValueError(errors[0].removeprefix("ip2p: error: "))


def import_source(source: Path, out: Path) -> dict[str, Array]:
    """Imports pairs as the command does; reads the dataset as `datasets` would: pictures by instruction."""
    import_pairs(PairsImport(source=str(source), target=str(out)), replace(PipelineConfig(), out=out))
    rows = [row for path in (out / "dataset").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return {row["edit_prompt"]: open_pixels(row["original_image"]["bytes"]) for row in rows}


def train_on(source: Path, out: Path) -> dict[str, Array]:
    """Reads the pairs that the trainer encodes: the original's pixels by instruction."""
    seen = {}
    for pair in open_rows(str(source), TRAINING).read():
        try:
            seen[str(pair.edit_prompt)] = decode_pair(pair, SIDE).pixels[0]
        except ValueError as error:
            assert str(error).partition(":")[0] in REASONS
    if not seen:
        raise ValueError("no row of the data can be used")
    return seen


REASONS = ("no instruction", "no image", "image does not decode", "image too large")


def evaluate_on(source: Path, out: Path) -> dict[str, Array]:
    """Reads the held-out edits of a dataset."""
    cases = hold_out_cases(replace(PipelineConfig(), training=TRAINING), None, source)
    if not cases:
        raise ValueError("the evaluation is skipped: there are no held-out edits")
    return {case.edit_prompt: case.original_image for case in cases}


def browse(source: Path, out: Path) -> dict[str, Array]:
    """Opens the pairs as the page does, which says which pictures cannot be shown."""
    pairs, seen = open_pairs(str(source)), {}
    instructions = pairs.values.get("edit_prompt", range(len(pairs)))
    for number, instruction in enumerate(instructions):
        try:
            original, _ = read_sides(pairs, number)
        except ValueError as error:
            _, reason, *_ = str(error).split(": ")  # behind the row that it names
            if reason not in REASONS:
                raise
            continue
        seen[instruction] = np.asarray(original)
    return seen


def benchmark_on(source: Path, out: Path) -> dict[str, Array]:
    """Reads a benchmark's edits with their pictures."""
    return {case.edit_prompt: case.original_image for case in read_benchmark(str(source)).cases}


def validate_on(source: Path, out: Path) -> dict[str, Array]:
    """Reads the pictures that a training is validated on."""
    pictures = read_pictures(replace(TRAINING, validation_file=str(source)))
    return {picture.edit_prompt: np.asarray(picture.image) for picture in pictures}


def read_as_captions(source: Path, out: Path) -> list[str]:
    """Reads captions, or ready triplets with the malformed ones left out."""
    cleaning = CleaningConfig(language="any", strip_markup=False, min_words=1)
    column = None if source.suffix == ".jsonl" else "edit_prompt"
    entries = read_captions(PromptsConfig(captions=str(source), captions_column=column, cleaning=cleaning)).entries
    triplets = [each.triplet for each in entries if isinstance(each, ReadyLine) and each.triplet]
    texts = [*(each for each in entries if isinstance(each, str)), *(triplet.edit_prompt for triplet in triplets)]
    return [text for text in texts if text]


def import_prompts(source: Path, out: Path) -> list[str]:
    """Imports triplets as the command does, and reads what it wrote."""
    ip2p("prompts", "import", source, out / "triplets.jsonl")
    return [json.loads(line)["edit_prompt"] for line in (out / "triplets.jsonl").read_bytes().split(b"\n") if line]


def edit_list(editor: Path, source: Path, out: Path) -> dict[str, Array]:
    """Edits as the command does; returns the edited pictures by name."""
    ip2p("edit", "--model", editor, "--num-inference-steps", 1, source, "make it red", out)
    return {path.name: open_pixels(path) for path in sorted(out.iterdir())}


def outcome_of(action: Action, source: Path, out: Path) -> Outcome:
    """Carries a command out and returns what came of it, or the line that `ip2p` ends with and exit code 2.

    Anything else that is raised would be a traceback or exit code 1, and is raised here.
    """
    try:
        result = action(source, out)
    except Exception as error:
        if not is_mistake(error):
            raise
        line = one_line(error)
        assert line.strip() and "\n" not in line and "Traceback" not in line
        assert not any((out / name).exists() for name in ("dataset", "triplets.jsonl"))
        assert not list(out.glob("*.png"))
        result = line
    assert not [path for path in out.rglob("*") if path.name.endswith((".partial", ".tmp"))]
    return result


# --- pictures


def picture_rows() -> list[dict[str, Any]]:
    return [
        {"edit_prompt": name, "original_image": kind.content, "edited_image": kind.content}
        for name, kind in PICTURES.items()
    ]


def as_bytes(folder: Path) -> Path:
    rows = [
        row | {side: {"bytes": row[side], "path": None} for side in ("original_image", "edited_image")}
        for row in picture_rows()
    ]
    (folder / "train.parquet").write_bytes(parquet_of(rows))
    shutil.copy(folder / "train.parquet", folder / "test.parquet")
    return folder


def as_plain_bytes(folder: Path) -> Path:
    (folder / "train.parquet").write_bytes(parquet_of(picture_rows()))
    shutil.copy(folder / "train.parquet", folder / "test.parquet")
    return folder


def beside(folder: Path, name: str, suffix: str = "") -> Path:
    """Writes the pictures as files beside a table that names them."""
    rows = []
    for number, row in enumerate(picture_rows()):
        (folder / f"{number} [x].bin").write_bytes(row["original_image"])
        rows.append(
            {"edit_prompt": row["edit_prompt"]}
            | {f"{side}{suffix}": f"{number} [x].bin" for side in ("original_image", "edited_image")}
        )
    (folder / name).write_bytes(encode_rows(rows, Path(name).suffix))
    return folder / name


CONTAINERS: Mapping[str, Callable[[Path], Path]] = {
    "bytes in parquet": as_bytes,
    "plain bytes in parquet": as_plain_bytes,
    "files beside a jsonl": lambda folder: beside(folder, "pairs.jsonl"),
    "files beside a csv": lambda folder: beside(folder, "pairs.csv"),
    "image folder": lambda folder: beside(folder, "metadata.jsonl", "_file_name").parent,
    "image folder with a csv": lambda folder: beside(folder, "metadata.csv", "_file_name").parent,
}
IN_ROWS: Mapping[str, tuple[Action, bool]] = {
    "train": (train_on, True),
    "dataset import": (import_source, True),
    "evaluate": (evaluate_on, False),
    "app": (browse, True),
}
"""Commands that leave out the rows they cannot use; and whether they take more than parquet."""
TABLES_OF_PICTURES = [
    (container, command)
    for container in CONTAINERS
    for command, (_, takes_all) in IN_ROWS.items()
    if takes_all or "parquet" in container
]


@pytest.mark.parametrize("container, command", TABLES_OF_PICTURES)
def test_pictures_in_a_table(container: str, command: str, tmp_path: Path) -> None:
    read = outcome_of(IN_ROWS[command][0], CONTAINERS[container](tmp_path), tmp_path / "out")
    assert isinstance(read, dict), read
    shown = {name: kind.shows for name, kind in PICTURES.items() if kind.shows is not None}
    assert read.keys() == shown.keys()
    assert [name for name in read if not np.array_equal(read[name], shown[name])] == []


@pytest.mark.parametrize("command", ["benchmark", "validation"])
def test_pictures_in_a_list(command: str, tmp_path: Path) -> None:
    action = {"benchmark": benchmark_on, "validation": validate_on}[command]
    for name, kind in PICTURES.items():
        (tmp_path / "x.bin").write_bytes(kind.content)
        (tmp_path / "edits.jsonl").write_text(json.dumps({"image": "x.bin", "edit_prompt": name}))
        read = outcome_of(action, tmp_path / "edits.jsonl", tmp_path / "out")
        is_right = "x.bin" in read if kind.shows is None else np.array_equal(read[name], kind.shows)
        assert is_right, (name, read)


def test_pictures_uploaded_to_the_page(tmp_path: Path) -> None:
    (upload,) = (block for block in build_page(tmp_path).blocks.values() if block.elem_id == "picture")
    assert isinstance(upload, Upload)
    for name, kind in PICTURES.items():
        if kind.shows is not None:
            file = tmp_path / f"x.{name.split()[-1].lower()}"
            file.write_bytes(kind.content)
            given = upload.preprocess(ImageData(path=str(file), orig_name=file.name))
            assert np.array_equal(open_pixels(Path(str(given))), kind.shows), name


@pytest.mark.slow
def test_pictures_to_edit(editor: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "kinds", tmp_path / "plain"):
        folder.mkdir()
    for number, kind in enumerate(PICTURES.values()):
        if kind.shows is not None:
            (tmp_path / "kinds" / f"{number}.png").write_bytes(kind.content)
            Image.fromarray(kind.shows).save(tmp_path / "plain" / f"{number}.png")
    edits, plain = (
        outcome_of(partial(edit_list, editor), tmp_path / name, tmp_path / f"{name} out") for name in ("kinds", "plain")
    )
    assert edits.keys() == plain.keys()
    assert [name for name in edits if not np.array_equal(edits[name], plain[name])] == []
    for name, kind in PICTURES.items():
        if kind.shows is None:
            (tmp_path / "x.png").write_bytes(kind.content)
            said = outcome_of(partial(edit_list, editor), tmp_path / "x.png", tmp_path / "out" / "x.png")
            assert said.startswith(f"cannot read {tmp_path / 'x.png'} as an image: image "), name


# --- texts

ROWS = [
    {**row, **dict.fromkeys(("image", "original_image", "edited_image", "output"), f"{name}.png")}
    for name, row in zip("abc", TEXT_ROWS, strict=True)
]
TEXT_COMMANDS: Mapping[str, tuple[Callable[..., Outcome], tuple[str, ...], tuple[str, ...]]] = {
    "captions": (read_as_captions, (".jsonl", ".csv"), ("row", "line")),
    "prompts import": (import_prompts, (".jsonl", ".csv"), ("row", "line")),
    "dataset import": (import_source, (".jsonl", ".csv"), ("row",)),
    "train": (train_on, (".jsonl", ".csv"), ("row",)),
    "edit": (edit_list, (".jsonl",), ()),
    "benchmark": (benchmark_on, (".jsonl",), ()),
    "validation": (validate_on, (".jsonl",), ()),
}
"""Commands, the forms that they take, and the damages that cost them only the damaged row."""


@pytest.mark.parametrize("command", commands(*TEXT_COMMANDS))
def test_tables_of_texts(command: str, editor: Path, tmp_path: Path) -> None:
    action, forms, tolerated = TEXT_COMMANDS[command]
    column = "output" if command == "edit" else "edit_prompt"
    for row in ROWS:
        (tmp_path / row["image"]).write_bytes(PLAIN)
    wrong: dict[str, Outcome] = {}
    for number, (form, (name, kind)) in enumerate(itertools.product(forms, TEXTS.items())):
        if form not in kind.forms:
            continue
        rows, source = kind.rows(ROWS), tmp_path / f"{number}{form}"
        source.write_bytes(kind.content(encode_rows(rows, form)))
        result = outcome_of(partial(action, editor) if command == "edit" else action, source, tmp_path / f"{number}")
        if kind.spoils in ("nothing", *tolerated):
            kept = [row[column] for row in rows if kind.spoils == "nothing" or row["image"] != "b.png"]
            is_right = (
                sorted(map(spaced, result)) == sorted(map(spaced, kept)) if not isinstance(result, str) else False
            )
        else:
            is_right = isinstance(result, str) and source.name in result
        wrong |= {} if is_right else {name + form: result}
    assert wrong == {}


def spaced(text: str) -> str:
    """Captions are kept with one space between words."""
    return " ".join(text.split())


# --- parquet

PARQUET_COMMANDS: Mapping[str, tuple[Action, bool]] = {
    "captions": (read_as_captions, False),
    "prompts import": (import_prompts, False),
    "dataset import": (import_source, True),
    "train": (train_on, True),
    "evaluate": (evaluate_on, True),
    "app": (browse, True),
    "benchmark": (benchmark_on, True),
}
"""Commands, and whether they take folders of shards."""


@pytest.mark.parametrize("command", commands(*PARQUET_COMMANDS))
def test_parquet_files(command: str, tmp_path: Path) -> None:
    action, takes_folders = PARQUET_COMMANDS[command]
    split = "test" if command in ("evaluate", "benchmark") else "train"
    wrong: dict[str, Outcome] = {}
    for kind, (shards, usable) in SHARDS.items():
        if not takes_folders and len(shards) > 1:
            continue
        source = tmp_path / kind
        source.mkdir()
        for number, shard in enumerate(shards):
            content = shard if isinstance(shard, bytes) else parquet_of(shard)
            (source / f"{split}-{number}.parquet").write_bytes(content)
        result = outcome_of(action, source if takes_folders else source / f"{split}-0.parquet", tmp_path / "out" / kind)
        if command == "app" and len(shards) == 1 and isinstance(shards[0], pa.Table):
            is_right = len(result) == len(shards[0])  # the page shows rows without an instruction too
        elif usable is None:
            is_right = isinstance(result, str)
        else:
            is_right = not isinstance(result, str) and sorted(result) == [f"make {name}" for name in usable]
        wrong |= {} if is_right else {kind: result}
    assert wrong == {}


# --- names of files and folders


def write_named(folder: Path, name: str, command: str) -> Path:
    """Writes what a command takes under a name, beside files that are no data; returns what to give the command."""
    folder.mkdir()
    row = {**TEXT_ROWS[0], **dict.fromkeys(("image", "original_image", "edited_image"), f"{name}.png")}
    cells = {side: {"bytes": None, "path": f"{name}.png"} for side in ("original_image", "edited_image")}
    for noise in ("", "._", "."):
        (folder / f"{noise}{name}.png").write_bytes(b"no picture" if noise else PLAIN)
    for junk in (".ipynb_checkpoints", "__MACOSX", ".hidden"):
        (folder / junk).mkdir()
        for ending in ("train.parquet", "test.parquet", f"{name}.png", "metadata.jsonl"):
            (folder / junk / ending).write_bytes(b"junk")
    file = {
        "captions": f"{name}.csv",
        "prompts import": f"{name}.jsonl",
        "dataset import": f"{name}.parquet",
        "train": f"train/{name}.parquet",
        "evaluate": f"test/{name}.parquet",
        "app": f"{name}.parquet",
        "benchmark": "edits.jsonl",
        "validation": f"{name}.jsonl",
        "edit": "",
    }[command]
    if file.endswith(".parquet"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(parquet_of([row | cells]))
        (folder / file).with_name(f"._{Path(file).name}").write_bytes(b"junk")
        if "/" in file:
            shutil.copy(folder / f"{name}.png", (folder / file).parent)
    elif file:
        (folder / file).write_bytes(encode_rows([row], Path(file).suffix))
    return folder / file if command in ("captions", "prompts import", "validation") else folder


@pytest.mark.parametrize("is_linked", [False, True])
@pytest.mark.parametrize("command", commands(*PARQUET_COMMANDS, "validation", "edit"))
def test_names_of_files_and_folders(command: str, is_linked: bool, editor: Path, tmp_path: Path) -> None:
    further: dict[str, Action] = {"validation": validate_on, "edit": partial(edit_list, editor)}
    action = further[command] if command in further else PARQUET_COMMANDS[command][0]
    wrong: dict[str, Outcome] = {}
    for number, name in enumerate(NAMES):
        source = write_named(tmp_path / name, name, command)
        if is_linked:
            (tmp_path / f"link {number}").symlink_to(tmp_path / name)
            source = tmp_path / f"link {number}" / source.relative_to(tmp_path / name)
        result = outcome_of(action, source, tmp_path / f"out {number}")
        is_right = list(result) == ([f"{name}.png"] if command == "edit" else ["make a"])
        wrong |= {} if is_right else {name: result}
    assert wrong == {}


# --- splits


SPLIT_WORDS = [word for words in SPLITS.values() for word in words]
PLACES = ("{}.parquet", "{}/0000.parquet", "default/{}/0000.parquet", "data/x-{}-00000-of-00001.parquet")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("word", SPLIT_WORDS)
def test_splits(word: str, place: str, tmp_path: Path) -> None:
    split = next(split for split, words in SPLITS.items() if word in words)
    prompts = dict(zip(SPLITS, TABLE["edit_prompt"].to_pylist(), strict=True))
    for number, name in enumerate(SPLITS):
        file = tmp_path / place.format(word if name == split else name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(parquet_of(TABLE.slice(number, 1)))
    assert list(train_on(tmp_path, tmp_path)) == [prompts["train"]]
    assert list(evaluate_on(tmp_path, tmp_path)) == [prompts["test"]]
    for asked in (word, *SPLITS):
        wanted = [prompts.get(asked, prompts[split])]
        assert [row.edit_prompt for row in read_source(str(tmp_path), split=asked)] == wanted
        assert [case.edit_prompt for case in read_benchmark(str(tmp_path), split=asked).cases] == wanted
