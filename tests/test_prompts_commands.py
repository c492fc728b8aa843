"""`ip2p prompts`: what each word prints and writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p import uses
from ip2p.cli import main
from ip2p.config import PipelineConfig
from ip2p.presets import data_folder
from ip2p.prompts import num_shards, read_triplets, write_shard
from ip2p.prompts.captions import ReadyLine, read_entries
from ip2p.prompts.format import REASONS
from ip2p.prompts.inspection import COLUMNS, measure, objects_of, verb_of
from ip2p.prompts.shards import read_generations
from ip2p.store import RunFolder

SEEDS = data_folder() / "prompts" / "photo.jsonl"
OURS = {"original_prompt": "a cat", "edit_prompt": "make it a dog", "edited_prompt": "a dog"}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def run(*words: str) -> int:
    return main(["prompts", *words])


@pytest.fixture
def config(tiny_config: PipelineConfig, tmp_path: Path) -> PipelineConfig:
    path = tmp_path / "some.jsonl"
    path.write_text("".join([*SEEDS.open().readlines()[:40], json.dumps({**OURS, "edited_prompt": "A cat!"}), "\n{"]))
    prompts = replace(tiny_config.prompts, captions=str(path), shard_size=30, max_prompt_tokens=10_000)
    made = replace(tiny_config, prompts=prompts)
    uses.write_config(made)
    for number in range(num_shards(made)):
        write_shard(made, number)
    return made


def test_inspect_tells_counts_words_lengths_and_samples(
    config: PipelineConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", str(config.out)) == 0
    text = said(capsys)
    for part in ("Reasons", "Edit types", "Most frequent verbs", "Most frequent objects", "Words of edit_prompt"):
        assert part in text
    for line in ("kept                    40   95.2%", "no_op                    1    2.4%", "unparsable"):
        assert line in text
    assert "no_op: [object] a cat | make it a dog | A cat!" in text or "a cat | make it a dog | A cat!" in text


def test_inspect_of_a_folder_without_triplets_is_a_mistake(
    tiny_config: PipelineConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    uses.write_config(tiny_config)
    assert run("inspect", str(tiny_config.out)) == 2
    assert "has no triplets. Run `ip2p dataset`" in capsys.readouterr().err


def test_export_and_import_are_inverse(
    config: PipelineConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, again = tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    assert run("export", str(config.out), str(out)) == 0
    assert run("import", str(out), str(again)) == 0
    assert "out.jsonl: 40 lines" in (text := said(capsys)) and "40 imported" in text
    lines = [line for line in read_entries(replace(config.prompts, captions=str(again))) if isinstance(line, ReadyLine)]
    kept = [triplet for path in RunFolder(config.out).shards("triplets") for triplet in read_triplets(path)]
    assert [line.triplet.id for line in lines if line.triplet] == [triplet.id for triplet in kept]
    assert run("export", str(config.out), str(out), "--rejected", "yes") == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["reason"] for row in rows if row["reason"]] == ["no_op", "unparsable"]


@pytest.mark.parametrize("key", ["input", "caption"])
def test_both_spellings_of_the_original_s_files_are_imported(tmp_path: Path, key: str) -> None:
    source, out = tmp_path / "released.jsonl", tmp_path / "out.jsonl"
    line = json.dumps({key: "a cat", "edit": "make it a dog", "output": "a dog", "url": "x"})
    source.write_text(f"{line}\n{line}\n{{broken\n")
    assert run("import", str(source), str(out)) == 0
    assert [json.loads(text) for text in out.read_text().splitlines()] == [
        {**OURS, "edit_type": "", "source": "released.jsonl"}
    ]


def test_an_import_takes_the_first_rows_of_a_file_if_a_number_is_named(tmp_path: Path) -> None:
    source, out = tmp_path / "source.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({**OURS, "edit_prompt": f"edit {number}"}) + "\n" for number in range(5)))
    assert run("import", str(source), str(out), "--num-rows", "2") == 0
    assert [json.loads(line)["edit_prompt"] for line in out.read_text().splitlines()] == ["edit 0", "edit 1"]


def test_any_table_is_imported_by_a_mapping_of_its_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "theirs.parquet", tmp_path / "out.jsonl"
    rows = [{"before": "a cat", "do": "make it a dog", "after": "a dog", "kind": "animal"}, {"before": None}]
    pq.write_table(pa.Table.from_pylist(rows), source)
    assert run("import", str(source), str(out)) == 2
    assert "Name its columns with --columns" in capsys.readouterr().err
    columns = "original_prompt=before,edit_prompt=do,edited_prompt=after,edit_type=kind"
    assert run("import", str(source), str(out), "--columns", columns) == 0
    assert "1 imported, 1 malformed" in said(capsys)
    assert json.loads(out.read_text()) == {**OURS, "edit_type": "animal", "source": "theirs.parquet"}


def test_try_prints_a_triplet_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["try", "a small red circle on a white background", "-n", "3", "shapes"]
    assert run(*words) == 0
    lines = said(capsys).splitlines()
    assert len(lines) == 3 and all(line.split(":")[0] in ("kept", *REASONS) for line in lines)
    assert run(*words, "--prompts.backend", "template") == 0
    assert all(line.startswith("kept: [") for line in said(capsys).splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "takes inspect, try, export, import, finetune; got nothing"),
        (["dance"], "got dance"),
        (["try"], "needs CAPTION. A caption, in quotes"),
        (["try", " ", "shapes"], "the caption is empty"),
        (["try", "a cat", "-n", "0"], "a whole number from 1 on, got 0"),
        (["inspect"], "needs RUN. A run folder"),
        (["export", "run"], "needs OUT.jsonl. File to write"),
        (["import", "a", "b", "c"], "'c' was not expected"),
        (["import", "a", "b", "--columns", "x"], "--columns takes ours=theirs"),
        (["finetune", "--model", "m"], "triplets"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_finetune_teaches_a_model_and_says_how_to_use_it(
    tiny_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = tmp_path / "some.jsonl"
    some.write_text("".join(SEEDS.open().readlines()[:12]))
    words = ["--model", str(tiny_lm), "--triplets", str(some), "--output", str(tmp_path / "taught")]
    assert run("finetune", *words, "--num-epochs", "1", "--learning-rate", "0.003", "--device", "cpu") == 0
    assert "held-out loss" in (text := said(capsys)) and f"--prompts.model {tmp_path / 'taught'}" in text


def test_verbs_leave_politeness_out_and_objects_are_what_a_caption_has_too() -> None:
    assert [verb_of(text) for text in ("Could you please add a hat?", "paint it", "")] == ["add", "paint", ""]
    row = {"original_prompt": "a cat", "edit_prompt": "give the cat a red hat", "edited_prompt": "a cat in a hat"}
    assert objects_of(row) == {"cat", "hat"}


def test_words_of_equal_frequency_are_always_in_the_same_order() -> None:
    words = "zebra apple tree house dog cat lamp"
    row = dict.fromkeys(COLUMNS, "") | {"original_prompt": words, "edit_prompt": f"take the {words}"}
    assert [word for word, _ in measure([row]).objects] == sorted(words.split())


def test_the_counts_are_of_what_there_is_and_samples_are_always_the_same(config: PipelineConfig) -> None:
    rows = list(read_generations(config, COLUMNS))
    found = measure(rows)
    assert found.reasons == {"": 40, "no_op": 1, "unparsable": 1}
    assert sum(counts.get("", 0) for counts in found.edit_types.values()) == 40
    assert all(sum(counts.values()) == 40 for counts in found.lengths.values())
    assert measure(rows).samples == found.samples
    assert measure([]).reasons == {}
