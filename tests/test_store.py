"""The store: a file is whole or not there, and a shard is done only with its sidecar, fingerprint and checksum."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p.store import (
    RunFolder,
    finished,
    hold,
    is_damaged,
    read_json,
    read_sidecar,
    read_summary,
    sha256_of,
    sidecar_path,
    summarise_shards,
    write_atomic,
    write_json,
    write_shard,
)
from ip2p.store.run import update_summary

TABLE = pa.table({"number": [1, 2, 3], "text": ["a", "b", "ü"]})

KILLED_IN_THE_TABLE = """
import os, signal, sys
from pathlib import Path
from ip2p.store import write_atomic

def write(file):
    file.write(b"half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

write_atomic(Path(sys.argv[1]), write)
"""

# `default=str` of the sidecar's JSON calls `__str__`: the table is in place then, the sidecar is not.
KILLED_BEFORE_THE_SIDECAR = """
import os, signal, sys
from pathlib import Path
import pyarrow as pa
from ip2p.store import write_shard

class Deadly:
    def __str__(self):
        os.kill(os.getpid(), signal.SIGKILL)

write_shard(Path(sys.argv[1]), pa.table({"number": [9]}), fingerprint="new", seconds=0.0, extra={"x": Deadly()})
"""


def die(code: str, path: Path) -> None:
    """Runs a program that kills itself over `path`."""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A finished shard under the fingerprint `old`."""
    path = RunFolder(tmp_path).shard("pairs", 3)
    write_shard(
        path, TABLE, fingerprint="old", seconds=1.23456, counts={"accepted": 2, "low_image": 1}, extra={"k": [1]}
    )
    return path


def test_a_shard_and_its_sidecar_come_back_as_they_went_in(shard: Path) -> None:
    sidecar = finished(shard, "old")
    assert sidecar is not None
    assert pq.read_table(shard).equals(TABLE)
    assert (sidecar.rows, sidecar.sha256, sidecar.seconds) == (3, sha256_of(shard), 1.235)
    assert (sidecar.counts, sidecar.extra) == ({"accepted": 2, "low_image": 1}, {"k": [1]})
    assert shard.name == "part-00003.parquet"
    assert read_sidecar(shard) == sidecar


def test_a_shard_of_another_fingerprint_is_not_done(shard: Path) -> None:
    assert finished(shard, "new") is None


def test_a_shard_without_its_table_is_not_done(shard: Path) -> None:
    shard.unlink()
    assert finished(shard, "old") is None


def test_a_shard_with_one_wrong_byte_is_not_done(shard: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert finished(shard, "old") is None
    assert "checksum" in caplog.text


def _set_times(path: Path, nanoseconds: int) -> None:
    os.utime(path, ns=(nanoseconds, nanoseconds))


def test_a_shard_of_the_noted_size_and_time_is_not_read_and_its_damage_shows_in_its_checksum(shard: Path) -> None:
    written = shard.stat().st_mtime_ns
    _set_times(sidecar_path(shard), written + 10**9)
    shard.write_bytes(b"x" * shard.stat().st_size)
    _set_times(shard, written)
    assert finished(shard, "old") is not None
    assert is_damaged(shard)


def test_a_shard_that_another_clock_or_none_tells_from_a_changed_one_is_read(shard: Path) -> None:
    content, written = shard.read_bytes(), shard.stat().st_mtime_ns
    for noted, now in ((written, written), (written + 10**9, written + 1)):  # in one tick; copied without its time
        for holds in (True, False):
            shard.write_bytes(content if holds else b"x" * len(content))
            _set_times(shard, now)
            _set_times(sidecar_path(shard), noted)
            assert (finished(shard, "old") is not None) == holds == (not is_damaged(shard))


def test_a_shard_of_an_earlier_version_of_the_package_is_read(shard: Path) -> None:
    values = read_json(sidecar_path(shard))
    assert values.pop("version") == [shard.stat().st_size, shard.stat().st_mtime_ns]
    write_json(sidecar_path(shard), values)
    assert finished(shard, "old") is not None
    shard.write_bytes(b"x" * shard.stat().st_size)
    assert finished(shard, "old") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"rows": 3}', '{"unknown": 1}'])
def test_a_broken_sidecar_makes_a_shard_undone_and_not_an_error(shard: Path, text: str) -> None:
    sidecar_path(shard).write_text(text)
    assert finished(shard, "old") is None


def test_a_process_killed_within_the_table_leaves_what_was_there(shard: Path) -> None:
    before = shard.read_bytes()
    die(KILLED_IN_THE_TABLE, shard)
    assert shard.read_bytes() == before
    assert finished(shard, "old") is not None
    assert RunFolder(shard.parent.parent).shards("pairs") == [shard]


def test_a_process_killed_between_table_and_sidecar_leaves_a_shard_undone(shard: Path) -> None:
    die(KILLED_BEFORE_THE_SIDECAR, shard)
    assert pq.read_table(shard).to_pydict() == {"number": [9]}
    assert finished(shard, "old") is None
    assert finished(shard, "new") is None
    assert RunFolder(shard.parent.parent).shards("pairs") == []


def test_an_undone_shard_is_made_again_over_what_is_left(shard: Path) -> None:
    die(KILLED_IN_THE_TABLE, shard)
    die(KILLED_BEFORE_THE_SIDECAR, shard)
    write_shard(shard, TABLE, fingerprint="new", seconds=0.0)
    assert finished(shard, "new") is not None
    assert pq.read_table(shard).equals(TABLE)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file: IO[bytes]) -> None:
        file.write(b"new")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomic(path, write)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]


def test_a_write_makes_its_folders_and_returns_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"

    def write(file: IO[bytes]) -> None:
        file.write(b"content")

    digest = write_atomic(path, write)
    assert digest == sha256_of(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1, 2.5, None], "b": "ü", "c": Path("p")})
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, None], "b": "ü", "c": "p"}


def test_shards_are_listed_in_order_and_those_of_a_longer_run_are_dropped(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for number in (10, 2, 0, 100000):
        write_shard(run.shard("pairs", number), TABLE, fingerprint="f", seconds=0.0)
    assert {path.name for path in run.shards("pairs")} == {f"part-{n:05d}.parquet" for n in (0, 2, 10, 100000)}
    assert run.shards("triplets") == []
    run.drop_shards_from("pairs", 10)
    assert run.shards("pairs") == [run.shard("pairs", 0), run.shard("pairs", 2)]
    assert len(list((tmp_path / "pairs").iterdir())) == 4


def test_a_summary_keeps_the_other_stages(tmp_path: Path) -> None:
    update_summary(tmp_path, "prompts", {"kept": 1})
    update_summary(tmp_path, "rendering", {"accepted": 2})
    update_summary(tmp_path, "prompts", {"kept": 3})
    assert read_summary(tmp_path) == {"prompts": {"kept": 3}, "rendering": {"accepted": 2}}
    assert json.loads((tmp_path / "summary.json").read_text()) == read_summary(tmp_path)


@pytest.mark.parametrize("text", [None, "", "[]"])
def test_a_summary_that_cannot_be_read_is_empty(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    assert read_summary(tmp_path) == {}


def test_counts_and_seconds_of_shards_are_added_up(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_shard(run.shard("pairs", 0), TABLE, fingerprint="f", seconds=1.5, counts={"accepted": 2, "low_image": 1})
    write_shard(run.shard("pairs", 1), TABLE, fingerprint="f", seconds=2.0, counts={"accepted": 3})
    assert summarise_shards(tmp_path, "pairs") == {"shards": 2, "accepted": 5, "low_image": 1, "seconds": 3.5}


HOLD = """
import sys
from pathlib import Path
from ip2p.store import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_folder_is_held_by_one_process_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    root = tmp_path / "run"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"run is in use by process {other.pid} on .*--out"):
            hold(root)
        other.kill()
    leftover = root / "candidates" / ".part-00000.parquet.1.partial"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    hold(root)
    assert not leftover.exists()
    hold(root)  # the same process may ask again
    done = subprocess.run([sys.executable, "-c", HOLD, str(root)], capture_output=True, text=True, check=False)
    assert f"in use by process {os.getpid()}" in done.stderr


FULL = """
import resource, sys
from pathlib import Path
import pyarrow as pa
from ip2p.store import write_shard
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
write_shard(Path(sys.argv[1]), pa.table({"a": list(range(100000))}), fingerprint="new", seconds=0.0)
"""


def test_a_disk_that_takes_no_more_leaves_no_half_shard(shard: Path) -> None:
    """A limit on the size of files stops a write in its midst, as a full disk does."""
    before = {path.name for path in shard.parent.iterdir()}
    done = subprocess.run([sys.executable, "-c", FULL, str(shard)], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "File too large" in done.stderr
    assert {path.name for path in shard.parent.iterdir()} <= before
    assert finished(shard, "new") is None
    write_shard(shard, TABLE, fingerprint="new", seconds=0.0)
    assert finished(shard, "new") is not None


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/run cannot be written to: Not a directory\. Give another folder"):
        hold(tmp_path / "file" / "run")
