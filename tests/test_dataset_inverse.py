"""Pairs turned round: pictures and captions change sides, and the instruction is written anew for the other way."""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p.cli import main
from ip2p.config import PromptsConfig
from ip2p.dataset.split import side_of
from ip2p.images import encode_png
from ip2p.models import loading
from ip2p.models.loading import unload_all
from ip2p.prompts.wording import Change, Wording, ask_model, messages_for, read_wording
from ip2p.shapes.domain import ShapesDomain
from ip2p.shapes.language import SceneEdit, caption, describe, draw_edit, read_edit
from ip2p.shapes.scene import render
from ip2p.store import RunFolder, read_summary
from tests.chat_server import serving
from tests.trained_models import chat_config, render_talk, write_trained_chat_model

DOMAIN = ["--evaluation.domain", "ip2p.shapes.domain:ShapesDomain"]
NUM = 40


def cell(content: bytes) -> dict[str, Any]:
    return {"bytes": content, "path": None}


def as_row(edit: SceneEdit) -> dict[str, Any]:
    return {
        "original_prompt": caption(describe(edit.original)),
        "original_image": cell(encode_png(render(edit.original))),
        "edit_prompt": edit.edit_prompt,
        "edited_prompt": caption(describe(edit.edited)),
        "edited_image": cell(encode_png(render(edit.edited))),
        "edit_type": edit.edit_type,
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of true drawings."""
    folder, rng = tmp_path_factory.mktemp("inverse"), random.Random(0)
    rows = [as_row(draw_edit(rng)) for _ in range(NUM)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    words = ["dataset", "import", str(folder / "train.parquet"), str(folder / "run"), "--dataset.test-fraction", "0.3"]
    assert main(words) == 0
    return folder / "run"


def rows_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    files = sorted((out / "dataset" / "data").glob("*.parquet"))
    return {path.name.partition("-")[0]: pq.read_table(path).to_pylist() for path in files}


def pairs_of(out: Path) -> dict[str, dict[str, Any]]:
    rows = [row for path in RunFolder(out).shards("pairs") for row in pq.read_table(path).to_pylist()]
    return {f"{row['triplet_id']}-{row['candidate']}": row for row in rows}


def test_a_domain_words_the_way_back_and_its_own_reader_and_oracle_agree(run: Path, tmp_path: Path) -> None:
    out, judge = tmp_path / "out", ShapesDomain()
    assert main(["dataset", "invert", str(run), str(out), *DOMAIN]) == 0
    pairs, kinds = pairs_of(run), set()
    for split, rows in rows_of(out).items():
        for row in rows:
            name, _, key = row["source"].partition("/")
            pair = pairs[key]
            assert name == "inverse of run"
            for one, other in (("original", "edited"), ("edited", "original")):
                assert row[f"{one}_prompt"] == pair[f"{other}_prompt"]
                assert row[f"{one}_image"]["bytes"] == pair[f"{other}_image"]["bytes"]
            edit = read_edit(row["original_prompt"], row["edit_prompt"], row["edited_prompt"])
            assert edit is not None and edit[2].kind == row["edit_type"]
            kinds.add((pair["edit_type"], row["edit_type"]))
            assert side_of(pair["original_prompt"], 0.3) == split
    assert ("add", "remove") in kinds
    assert judge.word_edit("a small red circle on a white background", "a scene", 0) is None


def test_no_caption_is_in_another_split_than_in_the_run_and_what_is_left_out_is_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["dataset", "invert", str(run), str(out), *DOMAIN]) == 0
    told = capsys.readouterr().out
    both = {
        split: {
            row[name]
            for each in (run, out)
            for row in rows_of(each)[split]
            for name in ("original_prompt", "edited_prompt")
        }
        for split in ("train", "test")
    }
    assert not both["train"] & both["test"]
    imported = read_summary(out)["prompts"]["imported"]
    (left_out,) = re.findall(r"(\d+) caption in the other split", told)
    (no_wording,) = re.findall(r"(\d+) no wording", told) or ["0"]
    assert 0 < imported == NUM - int(left_out) - int(no_wording)


def test_a_server_words_the_way_back_once_per_pair_and_bad_answers_are_counted(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def answer(messages: list[dict[str, str]]) -> str:
        last = messages[-1]["content"]
        before, _, after = (json.loads(line.partition(": ")[2]) if '"' in line else "" for line in last.split("\n"))
        if "circle" in before:
            return "make it so"
        return json.dumps({"edit_type": "color", "edit_prompt": f"from {before} to {after}"})

    with serving() as server:
        server.answer = answer
        words = ["--prompts.backend", "server", "--prompts.model", "m", "--prompts.server.base-url", server.url]
        words += ["--prompts.edit-types", "color", "1"]
        assert main(["dataset", "invert", str(run), str(out), *words]) == 0
        asked = sum(server.asked.values())
        assert main(["dataset", "invert", str(run), str(out), *words]) == 0
        assert sum(server.asked.values()) == asked
    rows = [row for some in rows_of(out).values() for row in some]
    assert rows and all(
        row["edit_prompt"] == f"from {row['original_prompt']} to {row['edited_prompt']}" for row in rows
    )
    assert not any("circle" in row["original_prompt"] for row in rows)


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> tuple[PromptsConfig, dict[Change, str]]:
    """A chat model that was taught what leads from one caption to another, and once an answer in prose."""
    told = {
        Change("a red circle", "a blue circle"): '{"edit_type": "colour", "edit_prompt": "paint it blue"}',
        Change("a blue square", "a red square"): '{"edit_type": "colour", "edit_prompt": "paint it red"}',
        Change("a star", "a star and a ring"): '{"edit_type": "add", "edit_prompt": "add a ring"}',
        Change("a star and a ring", "a star"): "Sure!",
    }
    folder = tmp_path_factory.mktemp("worded") / "chat"
    config = replace(chat_config(folder), device="cpu", batch_size=2)
    texts = [(render_talk(messages_for(config, change)), answer) for change, answer in told.items()]
    write_trained_chat_model(folder, 300, texts)
    return config, told


def test_a_chat_model_in_this_process_words_changes_and_none_twice(
    worded: tuple[PromptsConfig, dict[Change, str]], tmp_path: Path
) -> None:
    config, told = worded
    changes, journal = [*told, *told], tmp_path / "wordings.jsonl"
    expected = [
        Wording("colour", "paint it blue"),
        Wording("colour", "paint it red"),
        Wording("add", "add a ring"),
        None,
    ]
    assert ask_model(config, journal)(changes) == 2 * expected
    assert len(journal.read_text().splitlines()) == len(told)
    unload_all()
    assert ask_model(config, journal)(changes[::-1]) == 2 * expected[::-1]
    assert not loading._models  # every answer is there
    alone = ask_model(replace(config, batch_size=1), tmp_path / "other.jsonl")
    assert [alone([change])[0] for change in told] == expected
    folder = shutil.copytree(config.model, tmp_path / "copy")
    (folder / "generation_config.json").write_text((folder / "generation_config.json").read_text() + "\n")
    journal.write_text(journal.read_text().replace(config.model, str(folder)))
    assert ask_model(replace(config, model=str(folder)), journal)(changes[:1]) == expected[:1]
    assert len(journal.read_text().splitlines()) == len(told) + 1  # another content under the name


def test_pairs_are_turned_round_by_a_chat_model(
    worded: tuple[PromptsConfig, dict[Change, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, told = worded
    row = as_row(draw_edit(random.Random(1)))
    rows = [row | {"original_prompt": change.after, "edited_prompt": change.before} for change in told]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    run, out = str(tmp_path / "run"), tmp_path / "out"
    assert main(["dataset", "import", str(tmp_path / "train.parquet"), run, "--dataset.test-fraction", "0"]) == 0
    words = ["--prompts.backend", "chat", "--prompts.model", config.model, "--prompts.temperature", "0"]
    words += ["--prompts.num-examples", "0", "--prompts.max-new-tokens", "60", "--prompts.device", "cpu"]
    words += ["--prompts.edit-types", *(str(each) for pair in config.edit_types for each in pair)]
    assert main(["dataset", "invert", run, str(out), *words]) == 0
    assert "1 no wording" in capsys.readouterr().out
    made = {(row["original_prompt"], row["edited_prompt"]): row["edit_prompt"] for row in rows_of(out)["train"]}
    assert made == {
        ("a red circle", "a blue circle"): "paint it blue",
        ("a blue square", "a red square"): "paint it red",
        ("a star", "a star and a ring"): "add a ring",
    }


def test_pairs_without_captions_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (as_row(draw_edit(random.Random(seed))) for seed in (1, 2))
    rows = [first, second | {"original_prompt": "", "edited_prompt": ""}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    fraction = ["--dataset.test-fraction", "0"]
    assert main(["dataset", "import", str(tmp_path / "train.parquet"), str(tmp_path / "run"), *fraction]) == 0
    assert main(["dataset", "invert", str(tmp_path / "run"), str(tmp_path / "out"), *DOMAIN]) == 0
    assert "1 rows, 1 imported, 1 no caption" in capsys.readouterr().out
    pq.write_table(pa.Table.from_pylist(rows[1:]), tmp_path / "train.parquet")
    assert main(["dataset", "import", str(tmp_path / "train.parquet"), str(tmp_path / "run"), *fraction]) == 0
    assert main(["dataset", "invert", str(tmp_path / "run"), str(tmp_path / "other"), *DOMAIN]) == 2
    assert "has no pair that can be turned round: 1 no caption" in capsys.readouterr().err


def test_a_backend_that_cannot_word_a_change_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset", "invert", str(run), str(tmp_path / "out"), "--prompts.backend", "causal_lm"]
    assert main(words) == 2
    assert "writes no instruction between two captions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "wording"),
    [
        ('{"edit_type": "add", "edit_prompt": " add a hat "}', ("add", "add a hat")),
        ('```json\n{"edit_type": "add", "edit_prompt": "add a hat"}\n```', ("add", "add a hat")),
        ('{"edit_type": "other", "edit_prompt": "add a hat"}', None),
        ('{"edit_type": "add", "edit_prompt": "two\\nlines"}', None),
        ('{"edit_type": "add", "edit_prompt": 7}', None),
        ('{"edit_type": "add"}', None),
        ("add a hat", None),
        ("[" * 99_999, None),
    ],
)
def test_an_answer_is_one_object_with_a_known_type_and_one_line(text: str, wording: tuple[str, str] | None) -> None:
    found = read_wording(text, ["add"])
    assert (found and (found.edit_type, found.edit_prompt)) == wording
