"""What a worker that shares no folder with the owner of a run copies, and that nothing of it is lost or left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from ip2p.store import shard_copy as module
from ip2p.store.locks import lock_file
from ip2p.store.mirror import Mirror, mirror_of, scratch_for, working_copy
from ip2p.store.shard_copy import files_of_shard, shard_copy
from tests.s3_server import files_of, stored

URL = "memory://apart/run"


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    """A store without the run, and a process that has not worked on it."""
    yield
    memory = fsspec.filesystem("memory")
    if memory.exists("/apart"):
        memory.rm("/apart", recursive=True)
    module._mirror_of_worker.cache_clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Makes this process work from another machine's scratch folder."""

    def become(name: str) -> Path:
        monkeypatch.setenv("IP2P_SCRATCH", str(tmp_path / name))
        return tmp_path / name

    become("owner")
    return become


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of {folder.name}")


def test_a_worker_has_its_shard_and_what_all_read_and_gives_back_what_it_makes(
    machine: Callable[[str], Path],
) -> None:
    shared = ("made_from.json", "captions/a.txt")
    of_three = ("triplets/part-00003.parquet", "triplets/part-00003.parquet.json", "answers/journal-00003.jsonl")
    with working_copy(URL) as owner:
        write(owner, *shared, *of_three, "triplets/part-00030.parquet", "pairs/part-00004.parquet", "summary.json")
        mirror = mirror_of(owner)
        assert mirror is not None and mirror.push() == 8
        disk = machine("worker")
        with shard_copy(URL, 3) as copy:
            assert disk in copy.parents and set(files_of(copy)) == {*shared, *of_three}
            write(copy, "pairs/part-00003.parquet", "pairs/answers/ab/abc", "made_from.json", "elsewhere.json")
        assert set(files_of(copy)) == {*shared, "elsewhere.json"}
        assert mirror.pull(files_of_shard(3)) == 1
        assert (owner / "pairs/part-00003.parquet").read_text() == f"pairs/part-00003.parquet of {copy.name}"
    assert set(stored(URL)) == set(files_of(owner)) | {"pairs/answers/ab/abc"}
    assert stored(URL)["made_from.json"] == f"made_from.json of {owner.name}".encode()


def test_what_a_worker_has_made_when_it_fails_is_in_the_store_and_outlives_an_owner_that_did_not_see_it(
    machine: Callable[[str], Path],
) -> None:
    with working_copy(URL) as owner:
        write(owner, "summary.json")
        machine("worker")
        with pytest.raises(RuntimeError, match="no memory"), shard_copy(URL, 0) as copy:
            write(copy, "answers/journal-00000.jsonl")
            raise RuntimeError("no memory")
    assert set(stored(URL)) == {"answers/journal-00000.jsonl", "summary.json"}
    with shard_copy(URL, 0) as copy:
        assert (copy / "answers/journal-00000.jsonl").exists()


def test_a_shard_that_another_worker_made_again_replaces_an_older_one(machine: Callable[[str], Path]) -> None:
    path = "pairs/part-00000.parquet"
    Mirror.open(URL).fs.pipe_file("/apart/run/" + path, b"older")
    with working_copy(URL) as owner:
        assert (owner / path).read_bytes() == b"older"
        machine("worker")
        with shard_copy(URL, 0) as copy:
            (copy / path).write_bytes(b"newer")
        mirror = mirror_of(owner)
        assert mirror is not None and mirror.pull(files_of_shard(0)) == 1
        assert (owner / path).read_bytes() == b"newer"


def test_the_folder_of_a_killed_worker_is_removed_and_that_of_a_living_one_is_not(
    machine: Callable[[str], Path],
) -> None:
    scratch = scratch_for(URL)
    workers = scratch.with_name(f"{scratch.name}-workers")
    write(workers, "here-1/pairs/part-00000.parquet", "here-2/pairs/part-00001.parquet")
    (workers / "here-1/.lock").touch()
    living = lock_file(workers / "here-2/.lock")
    assert living is not None
    with shard_copy(URL, 5) as copy:
        assert set(workers.iterdir()) == {copy, workers / "here-2"}
    living.release()
