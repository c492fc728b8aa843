"""A dataset written in parts: whoever takes them, in whatever order, its bytes are those of one worker's."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ip2p import dataset
from ip2p.config import DatasetConfig, PipelineConfig
from ip2p.dataset import files, spilling
from ip2p.images import IMAGE_TYPE
from tests.test_dataset import contents, write_pairs


@pytest.fixture
def whole(tmp_path: Path) -> PipelineConfig:
    """A run whose dataset one worker wrote in a single part of each pass."""
    config = PipelineConfig(out=tmp_path / "whole", dataset=DatasetConfig(test_fraction=0.3, rows_per_shard=7))
    write_pairs(config)
    assert dataset.begin_dataset(config) == 0
    assert dataset.plan_dataset(config) == (1, 1)
    dataset.write_dataset(config)
    return config


@pytest.fixture
def in_parts(tmp_path: Path, whole: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> PipelineConfig:
    """The same pairs, a part for each shard and each file, a row at a time."""
    for name in ("BUNDLE_BYTES", "GROUP_BYTES", "READ_BYTES"):
        monkeypatch.setattr(spilling, name, 1)
    config = replace(whole, out=tmp_path / "parts")
    write_pairs(config)
    return config


def names(config: PipelineConfig) -> list[str]:
    return sorted(path.name for path in config.out.iterdir())


def test_many_parts_make_the_bytes_of_one(whole: PipelineConfig, in_parts: PipelineConfig) -> None:
    parts = (dataset.begin_dataset(in_parts), *dataset.plan_dataset(in_parts))
    assert parts == (0, 4, len(list((whole.out / "dataset/data").iterdir())))
    dataset.write_dataset(in_parts)
    assert contents(in_parts.out / "dataset") == contents(whole.out / "dataset")
    assert names(in_parts) == names(whole)


def test_groups_of_several_files_make_the_same(
    whole: PipelineConfig, in_parts: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilling, "MOST_GROUPS", 4)
    dataset.begin_dataset(in_parts)
    assert dataset.plan_dataset(in_parts).groups == 4
    dataset.write_dataset(in_parts)
    assert contents(in_parts.out / "dataset") == contents(whole.out / "dataset")


def test_two_workers_in_any_order_make_the_bytes_of_one(whole: PipelineConfig, in_parts: PipelineConfig) -> None:
    def take(part: Callable[[PipelineConfig, int], None], num: int) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda number: part(in_parts, number), reversed(range(num))))
        part(in_parts, 0)  # a retried part finds its work done

    dataset.begin_dataset(in_parts)
    parts = dataset.plan_dataset(in_parts)
    take(dataset.gather_pairs, parts.bundles)
    take(dataset.write_files, parts.groups)
    dataset.finish_dataset(in_parts)
    assert contents(in_parts.out / "dataset") == contents(whole.out / "dataset")


def _write_and_die(config: PipelineConfig, after: int) -> None:
    """Is killed once it has written some files."""
    notes = config.out / ".dataset.partial" / files.NOTES
    write = files._write_noted

    def write_or_die(*arguments: object) -> None:
        if len(list(notes.glob("*"))) >= after:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)  # type: ignore[arg-type]

    files._write_noted = write_or_die  # type: ignore[assignment]
    dataset.write_dataset(config)


@pytest.mark.parametrize("after", [0, 3])
def test_a_killed_run_is_resumed_from_the_files_that_are_whole(
    whole: PipelineConfig, in_parts: PipelineConfig, after: int
) -> None:
    child = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(in_parts, after))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    hidden = in_parts.out / ".dataset.partial"
    spilled = {path: path.stat().st_mtime_ns for path in (hidden / spilling.SPILLS).glob("*")}
    written = {path.name: path.stat().st_mtime_ns for path in (hidden / spilling.RESULT / "data").glob("*.parquet")}
    assert (len(spilled), len(written)) == (4, after)
    dataset.begin_dataset(in_parts)
    dataset.gather_pairs(in_parts, 0)
    assert (hidden / spilling.SPILLS / "00000").exists()
    dataset.write_dataset(in_parts)
    made = {path.name: path.stat().st_mtime_ns for path in (in_parts.out / "dataset/data").iterdir()}
    assert written == {name: made[name] for name in written}
    assert contents(in_parts.out / "dataset") == contents(whole.out / "dataset")


def test_a_run_that_changed_after_a_kill_is_begun_anew(whole: PipelineConfig, in_parts: PipelineConfig) -> None:
    other = replace(in_parts, dataset=replace(in_parts.dataset, seed=1))
    dataset.begin_dataset(other)
    for number in range(dataset.plan_dataset(other).bundles):
        dataset.gather_pairs(other, number)
    dataset.write_files(other, 0)
    dataset.write_dataset(in_parts)
    assert contents(in_parts.out / "dataset") == contents(whole.out / "dataset")


def test_a_missing_file_is_no_dataset(in_parts: PipelineConfig) -> None:
    dataset.begin_dataset(in_parts)
    parts = dataset.plan_dataset(in_parts)
    dataset.gather_pairs(in_parts, 0)
    with pytest.raises(RuntimeError, match=rf"{parts.groups} files of the dataset, first t\S+, are missing"):
        dataset.finish_dataset(in_parts)


def test_rows_are_as_large_as_arrow_says_of_what_it_has_stored() -> None:
    images = [{"bytes": b"x" * num, "path": "name"} for num in (1, 40, 0)]
    table = {
        "text": pa.array(["a", "", "ü" * 30]),
        "missing": pa.nulls(3, pa.string()),
        "image": pa.array(images, IMAGE_TYPE),
        "number": pa.array([1, 2, 3]),
        "score": pa.nulls(3, pa.float64()),
        "whole": pa.array([True, False, True]),
    }
    for name, column in table.items():
        batch = pa.record_batch({name: column})
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, batch.schema) as writer:
            writer.write_batch(batch)
        (stored,) = pa.ipc.open_stream(stream.getvalue())
        expected = [stored.slice(row, 1).nbytes for row in range(3)]
        np.testing.assert_array_equal(spilling.row_sizes(batch), expected, err_msg=name)
