"""The latent cache as it is filled: when it pays, who reads what, how it is stopped, and what becomes of long texts."""

from __future__ import annotations

import logging
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open

from ip2p.sources.location import locate
from ip2p.sources.rows import open_table
from ip2p.training import filling, text_cache, validation
from ip2p.training.cache import join_caches
from ip2p.training.data import open_rows
from ip2p.training.encoding import encode_views
from ip2p.training.filling import cache_pays, load_cache
from ip2p.training.loop import Interrupted, Stop
from tests.test_training import pair, tiny_training, write_pairs
from tests.test_training_run import WEIGHTS, run, same_weights

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
NUM_PAIRS = 7


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "data", [pair(number) for number in range(NUM_PAIRS)])


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two rows and two texts."""
    monkeypatch.setattr(filling, "ROWS_PER_PART", 2)
    for module in (filling, text_cache):
        monkeypatch.setattr(module, "TEXTS_PER_PART", 2)


@pytest.mark.parametrize(
    ("steps", "options", "pays"),
    [
        (2, {}, False),  # 8 of 10 pairs are seen
        (3, {}, True),  # 12
        (5, {"random_flip": True}, False),  # as many as there are views
        (6, {"random_flip": True}, True),
        (1, {"cache_epochs": 0.0}, True),
        (100, {"cache_epochs": 50.0}, False),
        (3, {"gradient_accumulation_steps": 2, "random_flip": True}, True),
        (1, {"streaming": True}, True),
        (1, {"aspect_ratio_buckets": True}, True),
        (None, {"num_train_epochs": 1}, False),
        (None, {"num_train_epochs": 2}, True),
    ],
)
def test_a_cache_pays_if_a_training_encodes_more_without_it(
    tiny_sd: Path, steps: int | None, options: dict[str, Any], pays: bool
) -> None:
    config = tiny_training(tiny_sd, max_train_steps=steps, train_batch_size=4, **options)
    assert cache_pays(config, 10, num_processes=1) == pays


def test_a_short_training_encodes_at_its_steps_what_a_cache_would_hold(
    tmp_path: Path, data: Path, tiny_sd: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ip2p.training")
    short = tiny_training(tiny_sd, max_train_steps=1, train_batch_size=4)
    cached = run(replace(short, cache_epochs=0.0), str(data), tmp_path / "cached", tmp_path / "first", Stop())
    summary = run(short, str(data), tmp_path / "short", tmp_path / "second", Stop())
    assert "encoding pairs at every step: 0.571 epochs of 7 pairs, and a cache pays after 1." in caplog.text
    assert not (tmp_path / "short/cache").exists() and summary["seconds_caching"] == 0
    assert summary["loss"] == pytest.approx(cached["loss"], abs=1e-4)
    again = run(replace(short, cache_epochs=None, seed=1), str(data), tmp_path / "cached", tmp_path / "first", Stop())
    assert again["samples"] == NUM_PAIRS and "using the latent cache" in caplog.text  # since it is there


@pytest.mark.usefixtures("small_parts", "own_handlers")
def test_a_stop_ends_the_filling_at_once_and_keeps_whole_parts(
    tmp_path: Path, data: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_training(tiny_sd, max_train_steps=2, cache_epochs=0.0)
    encode, calls = encode_views, list[int]()

    def stopped_in_the_third(*arguments: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return encode(*arguments)

    monkeypatch.setattr(filling, "encode_views", stopped_in_the_third)
    with pytest.raises(Interrupted, match="Run again to resume"):
        run(config, str(data), tmp_path / "cut", tmp_path / "first", Stop().on_signals())
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").rglob("rows-*")}
    assert sorted(path.name[:10] for path in kept) == ["rows-00000", "rows-00001"]
    assert not list((tmp_path / "cut").rglob("*.partial")) and not list((tmp_path / "cut").rglob("finished.json"))
    monkeypatch.setattr(filling, "encode_views", encode)
    resumed = run(config, str(data), tmp_path / "cut", tmp_path / "first", Stop())
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    whole = run(config, str(data), tmp_path / "whole", tmp_path / "second", Stop())
    assert resumed["loss"] == whole["loss"] and resumed["samples"] == NUM_PAIRS


@pytest.mark.usefixtures("own_handlers")
def test_a_stop_waits_for_the_end_of_a_step_where_it_is_deferred_and_is_heeded_once() -> None:
    stop = Stop().on_signals()
    with stop.deferred():
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested.is_set()
    signal.raise_signal(signal.SIGINT)  # what ends may end


@pytest.mark.usefixtures("own_handlers")
def test_the_end_of_input_wakes_what_waits() -> None:
    stop = Stop().on_signals()
    reading, writing = os.pipe()
    saved = os.dup(0)
    os.dup2(reading, 0)
    try:
        stop.on_end_of_input()
        with pytest.raises(Interrupted):
            os.close(writing)
            threading.Event().wait(60)
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(reading)


def write_row_groups(folder: Path, name: str, first: int, num: int) -> Path:
    """Pairs in row groups of two."""
    write_pairs(folder, [pair(number) for number in range(first, first + num)], name)
    path = folder / "data" / name
    pq.write_table(pq.read_table(path), path, row_group_size=2)
    return path


def test_blocks_of_rows_are_read_without_the_others(tmp_path: Path, tiny_sd: Path) -> None:
    folder = tmp_path / "two"
    paths = [write_row_groups(folder, f"train-0000{number}-of-00002.parquet", 5 * number, 5) for number in range(2)]
    config = tiny_training(tiny_sd)
    rows = open_rows(str(folder), config)
    pairs = list(rows.read())
    assert len(pairs) == 10
    for size in (1, 2, 3, 4, 10, 11):
        numbers = range(-(-10 // size))
        assert [list(block) for block in rows.blocks(numbers, size)] == [
            pairs[size * number : size * number + size] for number in numbers
        ]
    with pq.ParquetFile(paths[0]) as file:
        column = file.metadata.row_group(0).column(0)
        start, length = column.dictionary_page_offset or column.data_page_offset, column.total_compressed_size
    content = bytearray(paths[0].read_bytes())
    content[start : start + length] = b"\xff" * length
    paths[0].write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        list(rows.read())
    blocks = [list(block) for block in rows.blocks([1, 4], 2)]  # nothing of the broken row group
    assert blocks == [pairs[2:4], pairs[8:10]]


def test_all_kinds_of_tables_give_the_same_part_as_of_all_rows(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "parquet", [pair(number) for number in range(5)])
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(f'{{"edit_prompt": "edit {number}"}}\n' for number in range(5)))
    for source in (folder, lines):
        table = open_table(locate(str(source)))
        rows = list(table.read(["edit_prompt"]))
        assert [(row.where, row.values) for row in table.read(["edit_prompt"], 1, 4)] == [
            (row.where, row.values) for row in rows[1:4]
        ]
        assert not list(table.read(["edit_prompt"], 5, 9)) and len(list(table.read(["edit_prompt"], 3))) == 2


class _Rank:
    """A process of two that has the accelerator's face and waits for no other."""

    def __init__(self, number: int) -> None:
        self.process_index, self.num_processes, self.is_main_process = number, 2, number == 0
        self.device, self.mixed_precision = torch.device("cpu"), "no"


@pytest.mark.usefixtures("small_parts")
def test_each_process_reads_and_encodes_its_own_parts(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    config = tiny_training(tiny_sd)
    rows = open_rows(str(data), config)
    prompts = filling.unique_prompts(rows.prompts())
    read: list[list[int]] = []
    blocks = rows.blocks

    def noted(numbers: Any, size: int) -> Any:
        read.append(list(numbers))
        return blocks(numbers, size)

    rows.blocks = noted  # type: ignore[method-assign]
    shared = tmp_path / "shared"
    shared.mkdir()
    with torch.no_grad():
        for rank in map(cast(type[Any], _Rank), range(2)):
            filling._write_texts(shared, prompts, config, rank)
            filling._write_rows(shared, rows, prompts, config, rank)
    assert read == [[0, 2], [1, 3]]
    alone = load_cache(tmp_path / "alone", rows, config, Accelerator(cpu=True))
    (folder,) = (tmp_path / "alone").iterdir()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as one, safe_open(shared / path.name, "pt") as other:
            assert all(torch.equal(one.get_tensor(name), other.get_tensor(name)) for name in one.keys())  # noqa: SIM118
    assert len(alone) == NUM_PAIRS


@pytest.mark.usefixtures("small_parts")
def test_texts_past_the_limit_are_encoded_at_every_step(
    tmp_path: Path, data: Path, tiny_sd: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ip2p.training")
    config = tiny_training(tiny_sd)
    rows, limited = open_rows(str(data), config), replace(config, max_text_cache_gib=0.0)
    stored = load_cache(tmp_path / "stored", rows, config, Accelerator(cpu=True))
    assert "of 4 instructions take 0.0 GiB" in caplog.text and "they are kept in the cache" in caplog.text
    for _ in ("filled", "loaded"):
        encoded = load_cache(tmp_path / "encoded", rows, limited, Accelerator(cpu=True))
        assert not list((tmp_path / "encoded").rglob("text-*"))
        first, second = (cache.take([3, 0, 5], [False] * 3) for cache in (stored, encoded))
        assert torch.allclose(first.texts.hidden, second.texts.hidden, atol=1e-5)
        assert torch.equal(first.mean, second.mean) and torch.allclose(
            stored.none.hidden, encoded.none.hidden, atol=1e-5
        )
    assert "they are encoded at every step, with the encoders in memory" in caplog.text
    joined = join_caches([stored, encoded], [NUM_PAIRS, NUM_PAIRS])
    mixed = joined.take([NUM_PAIRS + 3, 0, NUM_PAIRS + 5, 3], [False] * 4)
    expected = stored.take([3, 0, 5, 3], [False] * 4)
    assert torch.allclose(mixed.texts.hidden, expected.texts.hidden, atol=1e-5)
    assert torch.equal(mixed.mean, expected.mean)


@pytest.mark.usefixtures("own_handlers")
def test_a_stop_while_a_training_validates_is_heeded_at_once_and_saves_the_step(
    tmp_path: Path, data: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(pair(0)["original_image"]["bytes"])
    looked_at = {"val_image_url_or_path": str(picture), "validation_prompt": "make it red", "validation_steps": 2}
    config = tiny_training(tiny_sd, max_train_steps=3, checkpointing_steps=100, **looked_at)
    with monkeypatch.context() as patched:
        patched.setattr(validation, "show_images", lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            run(config, str(data), tmp_path / "cut", tmp_path / "first", Stop().on_signals())
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-2"]
    run(config, str(data), tmp_path / "cut", tmp_path / "first", Stop())
    run(config, str(data), tmp_path / "whole", tmp_path / "second", Stop())
    assert same_weights(tmp_path / "first" / WEIGHTS, tmp_path / "second" / WEIGHTS)
