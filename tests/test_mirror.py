"""A run on an object store: the same guarantees as a folder's, on a local S3 server and in memory."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from ip2p.cli import main
from ip2p.cli.parsing import local_copy
from ip2p.store.mirror import OWNER, Mirror, scratch_for
from tests import processes
from tests.s3_server import files_of, serving_s3, stored
from tests.test_dataset_importing import dataset_rows, write_original


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A URL in a bucket of an S3 server on this machine."""
    with serving_s3() as bucket:
        yield f"{bucket}/runs/one"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes this process work from another machine's scratch folder."""

    def become(name: str) -> Path:
        monkeypatch.setenv("IP2P_SCRATCH", str(tmp_path / name))
        return tmp_path / name

    become("first")
    return become


@pytest.mark.slow
def test_a_run_lies_on_s3_and_is_gone_on_with_from_another_machine(
    s3: str, machine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_original(tmp_path / "original")
    assert main(["dataset", "import", str(source), s3]) == 0
    first = scratch_for(s3)
    assert "stored in" in capsys.readouterr().out
    assert stored(s3) == files_of(first)
    assert not fsspec.filesystem("s3").exists(f"{s3}/{OWNER}")
    machine("second")
    assert main(["dataset", "inspect", s3]) == 0
    assert "make it red" in capsys.readouterr().out
    assert scratch_for(s3) != first and files_of(scratch_for(s3)) == files_of(first)
    assert main(["refilter", s3, "--dataset.test-fraction=0", "--filtering.max-pairs-per-triplet=1"]) == 2  # unscored
    assert stored(s3).keys() >= {"config.json", "dataset/manifest.json"}
    assert len(dataset_rows(scratch_for(s3))["train"]) + len(dataset_rows(scratch_for(s3))["test"]) == 5


def test_a_shard_is_copied_before_its_sidecar_and_what_tells_of_all_last(machine: Any) -> None:
    mirror = Mirror.open("memory://order/run")
    names = ("summary.json", "pairs/part-00000.parquet.json", "pairs/part-00000.parquet", "dataset/manifest.json")
    for name in (*names, "training/cache/big", ".lock", "pairs/.part-00001.parquet.9.partial"):
        path = mirror.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    order: list[str] = []
    put = mirror.fs.put_file

    def noted(local: str, remote: str) -> None:
        order.append(remote)
        put(local, remote)

    mirror.fs.put_file = noted
    try:
        assert mirror.push() == 4
        assert mirror.push() == 0
    finally:
        del mirror.fs.put_file
    assert [path.removeprefix("/order/run/") for path in order] == [
        "pairs/part-00000.parquet",
        "pairs/part-00000.parquet.json",
        "dataset/manifest.json",
        "summary.json",
    ]


def test_what_was_finished_and_not_yet_copied_when_a_process_died_is_kept(machine: Any) -> None:
    url = "memory://killed/run"
    mirror = Mirror.open(url)
    (mirror.local / "a.parquet").write_text("old")
    mirror.push()
    (mirror.local / "a.parquet").write_text("newer")
    (mirror.local / "b.parquet").write_text("b")  # then it is killed
    again = Mirror.open(url)
    assert again.pull() == 0
    assert again.push() == 2
    assert stored(url) == {"a.parquet": b"newer", "b.parquet": b"b"}


def test_what_another_machine_did_meanwhile_is_copied_over(machine: Any) -> None:
    url = "memory://two/run"
    one = Mirror.open(url)
    (one.local / "a.json").write_text("one")
    (one.local / "old.json").write_text("old")
    one.push()
    machine("second")
    two = Mirror.open(url)
    assert two.pull() == 2
    (two.local / "a.json").write_text("two, longer")
    (two.local / "old.json").unlink()
    two.push(delete=True)
    machine("first")
    back = Mirror.open(url)
    assert back.pull() == 1
    assert (back.local / "a.json").read_text() == "two, longer"


def test_files_are_copied_while_the_command_works(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ip2p.store.mirror.SECONDS_BETWEEN_LOOKS", 0.02)
    url = "memory://while/run"
    with local_copy(url) as folder:
        (folder / "a.json").write_text("a")
        processes.wait_until(lambda: stored(url) == {"a.json": b"a"})  # the store shows a file before its content


def test_a_run_that_another_process_works_in_is_refused_until_it_is_silent(machine: Any) -> None:
    url = "memory://taken/run"
    other = dataclasses.replace(Mirror.open(url), me="process 1 on elsewhere")
    other.take()
    with pytest.raises(ValueError, match="in use by process 1 on elsewhere"), local_copy(url):
        pass
    fs, root = fsspec.core.url_to_fs(url)
    fs.pipe_file(f"{root}/{OWNER}", json.dumps({"who": other.me, "at": time.time() - 100}).encode())
    with local_copy(url) as folder:
        assert folder == scratch_for(url)


def test_a_folder_is_worked_in_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with local_copy(str(tmp_path)) as folder:
        assert folder == tmp_path
    assert capsys.readouterr().out == ""


def test_an_unknown_protocol_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "shapes", "--out", "nosuch://bucket/run"]) == 2
    assert "nosuch://bucket/run cannot be opened" in capsys.readouterr().err
