"""Pairs joined where one edit starts from the picture that another made: as sessions, and as one edit of two."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p.cli import main
from ip2p.config import PipelineConfig, RenderingConfig
from ip2p.dataset import write_dataset
from ip2p.dataset.composition import join_plainly
from ip2p.dataset.sessions import find_sessions
from ip2p.dataset.split import side_of
from ip2p.prompts.pictures import prepare
from ip2p.prompts.wording import Change
from ip2p.shapes.language import SceneEdit, draw_edit, draw_edit_of, read_edit
from ip2p.shapes.scene import Scene
from ip2p.sources.pairs import read_source
from ip2p.store import RunFolder, read_summary
from tests.chat_server import serving
from tests.test_dataset_inverse import DOMAIN, as_row
from tests.test_rendering_pictures import as_pictures, write_folder
from tests.test_rendering_pictures import write as write_pairs

FRACTION = ["--dataset.test-fraction", "0.3"]
NUM = 24


def write_run(rows: list[dict[str, Any]], folder: Path, *words: str) -> Path:
    folder.parent.mkdir(exist_ok=True)
    table = folder.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), table)
    assert main(["dataset", "import", str(table), str(folder), *(words or FRACTION)]) == 0
    return folder


def draw_on(rng: random.Random, scene: Scene) -> SceneEdit:
    return draw_edit_of(rng, scene, "colour")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A run with two edits of each of some drawings, its inverse, and a run that edits what came out of it."""
    folder, rng = tmp_path_factory.mktemp("sessions"), random.Random(0)
    edits = [draw_edit(rng) for _ in range(NUM)]
    first = [each for edit in edits for each in (edit, draw_on(rng, edit.original))]
    run = write_run([as_row(edit) for edit in first], folder / "run")
    again = write_run([as_row(draw_on(rng, edit.edited)) for edit in edits], folder / "again")
    inverse = folder / "inverse"
    assert main(["dataset", "invert", str(run), str(inverse), *DOMAIN]) == 0
    return run, inverse, again


def pairs_of(*runs: Path) -> dict[str, dict[str, Any]]:
    return {
        f"{run.name}/{row['triplet_id']}-{row['candidate']}": row
        for run in runs
        for path in RunFolder(run).shards("pairs")
        for row in pq.read_table(path).to_pylist()
    }


def sessions_in(folder: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Reads the turns by split and session, in the order of the files."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((folder / "data").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            found[path.name.partition("-")[0]][row["img_id"]].append(row)
    return found


def join(out: Path, run: Path, *others: Path, turns: int = 3) -> int:
    after = ["--continued-by", *map(str, others)] if others else []
    return main(["dataset", "sessions", str(run), *after, "--out", str(out), "--max-turns", str(turns)])


def test_every_turn_is_a_pair_of_a_run_and_starts_from_the_picture_that_the_last_one_made(
    runs: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    assert join(tmp_path / "out", *runs) == 0
    pairs, used = pairs_of(*runs), list[str]()
    for some in sessions_in(tmp_path / "out").values():
        for turns in some.values():
            assert [turn["turn_index"] for turn in turns] == list(range(1, len(turns) + 1))
            assert 2 <= len(turns) <= 3
            for before, after in zip(turns, turns[1:], strict=False):
                assert before["target_img"]["bytes"] == after["source_img"]["bytes"]
            for turn in turns:
                pair = pairs[turn["source"]]
                assert turn["instruction"] == pair["edit_prompt"]
                assert turn["source_img"]["bytes"] == pair["original_image"]["bytes"]
                assert turn["target_img"]["bytes"] == pair["edited_image"]["bytes"]
                assert [turn[name] for name in ("original_prompt", "edited_prompt", "edit_type")] == [
                    pair[name] for name in ("original_prompt", "edited_prompt", "edit_type")
                ]
            used += [turn["source"] for turn in turns]
    assert len(used) == len(set(used))
    assert {name.partition("/")[0] for name in used} == {"run", "inverse", "again"}


def test_an_inverse_run_leads_back_to_a_picture_from_which_the_next_edit_starts(
    runs: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    run, inverse, _ = runs
    assert join(tmp_path / "out", run, inverse, turns=4) == 0
    every = [turns for some in sessions_in(tmp_path / "out").values() for turns in some.values()]
    there_and_back = [turns for turns in every if len(turns) == 4]
    assert there_and_back
    for turns in there_and_back:
        start = turns[0]["source_img"]["bytes"]
        assert [turn["source"].partition("/")[0] for turn in turns] == ["run", "inverse"] * 2
        assert [turn["source_img"]["bytes"] == start for turn in turns] == [True, False] * 2


def test_no_caption_is_in_two_splits_and_every_pair_is_in_a_session_or_counted(
    runs: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert join(tmp_path / "out", *runs) == 0
    told = {what: int(num) for num, what in re.findall(r"(\d+) ([a-z ]+)", capsys.readouterr().out.split(": ")[-1])}
    captions, num = defaultdict[str, set[str]](set), 0
    for split, some in sessions_in(tmp_path / "out").items():
        assert told[f"{split} sessions"] == len(some)
        for turns in some.values():
            num += len(turns)
            captions[split] |= {turn[name] for turn in turns for name in ("original_prompt", "edited_prompt")}
            assert {side_of(turn["original_prompt"], 0.3) for turn in turns} == {split}
    assert captions["train"] and captions["test"] and not captions["train"] & captions["test"]
    left_out = ("caption in the other split", "picture unchanged", "seen before", "nothing to join")
    assert num == told["train turns"] + told["test turns"]
    assert num + sum(told.get(reason, 0) for reason in left_out) == len(pairs_of(*runs))


def test_the_same_runs_give_the_same_files_however_they_are_read_and_import_and_training_read_them(
    runs: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert join(tmp_path / "a", *runs) == 0
    monkeypatch.setattr("ip2p.dataset.split.READ_ROWS", 5)
    assert join(tmp_path / "b", *runs) == 0
    files = sorted((tmp_path / "a" / "data").iterdir())
    assert files and all(path.read_bytes() == (tmp_path / "b" / "data" / path.name).read_bytes() for path in files)
    turns = [turn for each in sessions_in(tmp_path / "a")["train"].values() for turn in each]
    for row, turn in zip(read_source(str(tmp_path / "a")), turns, strict=True):
        assert (row.group, row.edit_prompt) == (turn["img_id"], turn["instruction"])
        assert (row.original_image, row.edited_image) == (turn["source_img"]["bytes"], turn["target_img"]["bytes"])
        assert (row.original_prompt, row.edit_type) == (turn["original_prompt"], turn["edit_type"])


def test_the_benchmark_takes_them_as_sessions(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from ip2p.evaluation.benchmark_cases import read_benchmark

    assert join(tmp_path / "out", *runs) == 0
    found = read_benchmark(str(tmp_path / "out"))
    assert found.layout == "magicbrush"
    last = {case.session: number for number, case in enumerate(found.cases)}
    written = sessions_in(tmp_path / "out")["test"]
    assert set(last) == set(written)
    names = ("original_prompt", "edited_prompt", "edit_type")
    texts = {(case.session, *(getattr(case, name) for name in names)) for case in found.cases}
    assert texts == {(turn["img_id"], *(turn[name] for name in names)) for some in written.values() for turn in some}
    assert [number for number, case in enumerate(found.cases) if case.is_last] == sorted(last.values())


def test_a_picture_of_a_run_is_the_same_file_where_another_run_edits_it_again(runs: tuple[Path, Path, Path]) -> None:
    config = RenderingConfig(width=64, height=64)
    for pair in pairs_of(runs[0]).values():
        edited = pair["edited_image"]["bytes"]
        assert prepare(edited, (64, 64), config) == edited


def test_runs_in_which_nothing_joins_or_that_split_differently_are_refused_in_a_line(
    runs: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run([as_row(draw_edit(random.Random(1)))], tmp_path / "one", "--dataset.test-fraction", "0")
    assert join(tmp_path / "out", run) == 2
    assert "starts from a picture that another one made: 1 nothing to join. Name runs" in capsys.readouterr().err
    assert join(tmp_path / "out", run, runs[0]) == 2
    assert "different test fractions, 0, 0.3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_over_the_edited_pictures_of_another_goes_on_from_them(
    tiny_config: PipelineConfig, tiny_editor: Path, tmp_path: Path
) -> None:
    whole = replace(tiny_config, dataset=replace(tiny_config.dataset, test_fraction=0.0))
    first = write_pairs(as_pictures(whole, write_folder(tmp_path / "pictures"), tiny_editor))
    write_dataset(first)
    second = as_pictures(replace(first, out=tmp_path / "again"), first.out / "dataset", tiny_editor)
    columns: Any = {"pictures_column": "edited_image", "captions_column": "edited_prompt"}
    write_pairs(replace(second, prompts=replace(second.prompts, **columns)))
    found = find_sessions([first, second]).chains
    assert {tuple(turn.name.partition("/")[0] for turn in turns) for turns in found} == {("run", "again")}
    assert all(turns[0].edited == turns[1].original for turns in found)


def compose(runs: tuple[Path, ...], out: Path, *words: str) -> int:
    first, *others = map(str, runs)
    return main(["dataset", "compose", first, str(out), "--continued-by", *others, *words])


def composed_in(out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((out / "dataset" / "data").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            yield path.name.partition("-")[0], row


def sources_of(row: dict[str, Any]) -> list[str]:
    return str(row["source"]).removeprefix("composition/").split("+")


def test_a_composition_leads_from_the_first_picture_to_the_last_and_names_both_pairs(
    runs: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compose(runs, tmp_path / "out", *DOMAIN, "--join") == 0
    assert "leads back" in capsys.readouterr().out
    pairs, kinds, captions = pairs_of(*runs), set[str](), defaultdict[str, set[str]](set)
    for split, row in composed_in(tmp_path / "out"):
        first, second = (pairs[name] for name in sources_of(row))
        assert first["edited_image"]["bytes"] == second["original_image"]["bytes"]
        assert row["original_image"]["bytes"] == first["original_image"]["bytes"] != second["edited_image"]["bytes"]
        assert row["edited_image"]["bytes"] == second["edited_image"]["bytes"]
        assert (row["original_prompt"], row["edited_prompt"]) == (first["original_prompt"], second["edited_prompt"])
        if row["edit_type"] == "composition":
            assert row["edit_prompt"] == f"{first['edit_prompt']}, and {second['edit_prompt']}"
        else:
            assert read_edit(row["original_prompt"], row["edit_prompt"], row["edited_prompt"])
        kinds.add(row["edit_type"])
        captions[split] |= {row["original_prompt"], row["edited_prompt"]}
        assert side_of(first["original_prompt"], 0.3) == split
    assert "composition" in kinds and len(kinds) > 1
    assert not captions["train"] & captions["test"]


def test_what_the_domain_cannot_word_is_joined_only_on_request(
    runs: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compose(runs, tmp_path / "joined", *DOMAIN, "--join") == 0
    assert compose(runs, tmp_path / "worded", *DOMAIN) == 0
    (num,) = re.findall(r"(\d+) no wording", capsys.readouterr().out)
    joined, worded = (read_summary(tmp_path / name)["prompts"]["imported"] for name in ("joined", "worded"))
    assert worded == joined - int(num)
    assert "composition" not in {row["edit_type"] for _, row in composed_in(tmp_path / "worded")}
    assert compose(runs, tmp_path / "refused", "--prompts.backend", "template") == 2
    assert "writes no instruction between two captions" in capsys.readouterr().err


def test_a_server_is_given_both_instructions_and_asked_once(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"

    def answer(messages: list[dict[str, str]]) -> str:
        steps = json.loads(messages[-1]["content"].rpartition("one instruction: ")[2])
        return json.dumps({"edit_type": "color", "edit_prompt": " then ".join(steps)})

    with serving() as server:
        server.answer = answer
        words = ["--prompts.backend", "server", "--prompts.model", "m", "--prompts.server.base-url", server.url]
        words += ["--prompts.edit-types", "color", "1"]
        assert compose(runs, out, *words) == 0
        asked = sum(server.asked.values())
        assert compose(runs, out, *words) == 0
        assert sum(server.asked.values()) == asked > 0
    pairs = pairs_of(*runs)
    rows = [row for _, row in composed_in(out)]
    assert rows
    for row in rows:
        assert row["edit_prompt"] == " then ".join(pairs[name]["edit_prompt"] for name in sources_of(row))


@pytest.mark.parametrize(
    ("steps", "joined"),
    [
        (("make it red", "add a hat"), "make it red, and add a hat"),
        (("Make it red.", "Add a hat!"), "Make it red, and add a hat!"),
        (("add a hat", "UFOs in the sky"), "add a hat, and UFOs in the sky"),
    ],
)
def test_joining_is_plain(steps: tuple[str, str], joined: str) -> None:
    assert join_plainly(Change("a", "b", steps)).edit_prompt == joined
