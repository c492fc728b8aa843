"""A shard of the prompt stage, from captions to a parquet file with every generation and its reason."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ip2p import store
from ip2p.config import PipelineConfig, PromptsConfig
from ip2p.config.fields import ANSWERS_FREE, RESULT_FREE, names_with
from ip2p.models import loading
from ip2p.prompts import num_shards, read_triplets, write_shard
from ip2p.prompts.answers import FIRST_KNOBS, knobs_that_decide
from ip2p.prompts.format import parse_answer
from ip2p.prompts.screening import is_no_op
from tests.trained_models import TRAINED_CAPTIONS

pytestmark = pytest.mark.xdist_group("trained_models")


@pytest.fixture
def config(tiny_config: PipelineConfig, trained_lm: Path, tmp_path: Path) -> PipelineConfig:
    (tmp_path / "captions.txt").write_text("\n".join(TRAINED_CAPTIONS))
    return with_prompts(
        tiny_config,
        captions=str(tmp_path / "captions.txt"),
        model=str(trained_lm),
        shard_size=3,
        num_triplets_per_caption=4,
        max_new_tokens=60,
        max_prompt_tokens=200,
        temperature=1.0,
    )


def with_prompts(config: PipelineConfig, **changed: Any) -> PipelineConfig:
    return replace(config, prompts=replace(config.prompts, **changed))


def path_of(config: PipelineConfig, number: int = 0) -> Path:
    return store.RunFolder(config.out).shard("triplets", number)


def rows_of(config: PipelineConfig, number: int = 0) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = pq.read_table(path_of(config, number)).to_pylist()
    return rows


def write_all(config: PipelineConfig) -> list[dict[str, str]]:
    shards = range(num_shards(config))
    for number in shards:
        write_shard(config, number)
    return [row for number in shards for row in rows_of(config, number)]


def write_lines(config: PipelineConfig, *lines: str) -> PipelineConfig:
    path = Path(config.prompts.captions).with_name("ready.jsonl")
    path.write_text("\n".join(lines))
    return with_prompts(config, captions=str(path), shard_size=100, model="")


def as_line(original: str, edit: str, edited: str) -> str:
    return json.dumps({"original_prompt": original, "edit_prompt": edit, "edited_prompt": edited})


def test_every_generation_is_kept_with_its_text_and_its_reason(config: PipelineConfig) -> None:
    sidecar = write_shard(config, 0)
    rows = rows_of(config)
    assert sidecar.counts["generations"] == len(rows) == 12 and sidecar.counts["captions"] == 3
    assert sidecar.counts["kept"] == sum(not row["reason"] for row in rows) > 0
    assert sum(number for name, number in sidecar.counts.items() if name not in ("captions", "generations")) == 12
    for row in rows:
        if not row["reason"]:
            assert parse_answer(row["generation"]) == (row["edit_prompt"], row["edited_prompt"])
            assert not is_no_op(row["caption"], row["edited_prompt"])
        elif row["reason"] == "unparsable":
            assert parse_answer(row["generation"]) is None


def test_kept_triplets_are_read_back_with_their_ids_and_their_source(config: PipelineConfig) -> None:
    write_shard(config, 0)
    triplets = read_triplets(path_of(config))
    assert [triplet.id for triplet in triplets] == [row["triplet_id"] for row in rows_of(config) if not row["reason"]]
    assert len({triplet.id for triplet in triplets}) == len(triplets)
    assert {triplet.source for triplet in triplets} == {"language-model"}
    assert {triplet.edit_type for triplet in triplets} <= {"add", "remove", "background", "other"}


def test_the_same_config_writes_the_same_file(config: PipelineConfig, tmp_path: Path) -> None:
    again = replace(config, out=tmp_path / "again")
    assert write_shard(config, 0).sha256 == write_shard(again, 0).sha256


def test_neither_shard_size_nor_batch_size_changes_a_triplet(config: PipelineConfig, tmp_path: Path) -> None:
    other = with_prompts(replace(config, out=tmp_path / "other"), shard_size=1, batch_size=7)
    assert num_shards(other) == 4 and num_shards(config) == 2
    assert write_all(other) == write_all(config)


def test_a_finished_shard_is_not_written_again_even_where_its_model_is_gone(
    config: PipelineConfig, tmp_path: Path
) -> None:
    movable = with_prompts(config, model=str(shutil.copytree(config.prompts.model, tmp_path / "model")))
    first = write_shard(movable, 0)
    shutil.rmtree(movable.prompts.model)
    loading.unload_all()
    assert write_shard(movable, 0) == first
    with pytest.raises(ValueError, match="does not exist"):
        write_shard(movable, 1)


def test_a_changed_setting_writes_the_shard_again_and_a_longer_file_does_not(config: PipelineConfig) -> None:
    first = write_shard(config, 0)
    with Path(config.prompts.captions).open("a") as file:
        file.write("\na new caption at the end")
    assert write_shard(config, 0) == first
    assert write_shard(with_prompts(config, temperature=0.5), 0).fingerprint != first.fingerprint


def test_repeated_triplets_are_rejected_as_duplicates(config: PipelineConfig) -> None:
    counts = write_shard(with_prompts(config, temperature=0.0), 0).counts
    assert counts["kept"] == 3 and counts["duplicate"] == 9


def test_a_caption_too_long_for_the_text_encoder_is_rejected_unasked(config: PipelineConfig) -> None:
    rows = write_all(with_prompts(config, max_prompt_tokens=2))
    assert {(row["reason"], row["generation"]) for row in rows} == {("too_long", "")}
    assert sorted(row["caption"] for row in rows) == sorted(TRAINED_CAPTIONS)


def test_the_limit_is_the_one_of_the_renderer_s_tokenizer(config: PipelineConfig) -> None:
    fitting, long = "circle " * 30, "circle " * 31  # 32 tokens with the two special ones
    lines = [as_line("red", "red", text) for text in (fitting, long)]
    ready = write_lines(with_prompts(config, max_prompt_tokens=None), *lines)
    assert [row["reason"] for row in write_all(ready)] == ["", "too_long"]


def test_ready_triplets_need_no_language_model_and_a_malformed_line_loses_no_other(config: PipelineConfig) -> None:
    good = as_line("a red circle", "remove the circle", "nothing")
    ready = write_lines(config, good, "{broken", as_line("a cat", "nothing", "A cat."), good)
    assert write_shard(ready, 0).counts == {"captions": 3, "generations": 3, "kept": 1, "unparsable": 1, "no_op": 1}
    (triplet,) = read_triplets(path_of(ready))
    assert (triplet.edit_type, triplet.source) == ("remove", "ready.jsonl")
    assert [row["generation"] for row in rows_of(ready) if row["reason"] == "unparsable"] == ["{broken"]


def test_knobs_that_came_later_change_no_fingerprint_as_long_as_they_are_as_by_default() -> None:
    first = set(FIRST_KNOBS) - names_with(PromptsConfig, RESULT_FREE, ANSWERS_FREE)
    assert set(knobs_that_decide(PromptsConfig())) == first
    asked = knobs_that_decide(PromptsConfig(backend="template", num_repairs=3, captions_column="x"))
    assert set(asked) == first | {"backend", "num_repairs"}


def test_the_template_backend_writes_other_triplets_at_each_attempt_and_the_same_again(config: PipelineConfig) -> None:
    rows = write_all(with_prompts(config, backend="template", model=""))
    assert len({row["triplet_id"] for row in rows}) == len(rows) == 16
    assert {(row["reason"], row["source"]) for row in rows} == {("", "template")}


def test_a_shard_beyond_the_captions_is_an_error(config: PipelineConfig) -> None:
    with pytest.raises(ValueError, match="shard 2 has no captions"):
        write_shard(config, 2)


def test_an_unknown_language_model_is_a_one_line_error(config: PipelineConfig) -> None:
    for name in ("", "/nowhere/model"):
        with pytest.raises(ValueError, match=r"prompts\.model"):
            write_shard(with_prompts(config, model=name), 0)
