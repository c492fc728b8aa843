"""Workers on two Ray nodes that share nothing but an S3 server, one of which is killed in the middle of a shard.

tests/flows/test_ray.py has the whole pipeline on such nodes; here shards are plain tables, so that it takes seconds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ip2p import store
from ip2p.store.mirror import mirror_of, working_copy
from ip2p.store.shard_copy import files_of_shard, shard_copy
from tests.s3_server import files_of, serving_s3, stored

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

SHARDS = 6
DOOMED = "second"


def write_shard(url: str, number: int) -> str:
    """What a worker does; on the node that is to be killed it is in the middle of a shard for ever."""
    disk = os.environ["IP2P_SCRATCH"]
    with shard_copy(url, number) as folder:
        assert folder.is_relative_to(disk) and (folder / "made_from.json").read_text() == "{}"
        places = [store.RunFolder(folder).shard(stage, number) for stage in ("triplets", "pairs")]
        for place in places:
            if place.parent.name == "pairs" and Path(disk).name == DOOMED:
                threading.Event().wait()
            store.write_shard(place, pa.table({"row": list(range(number))}), fingerprint="f", seconds=0.0)
    return Path(disk).name


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A cluster whose head has a disk of its own, and a second node that has another."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "env_vars": {"IP2P_SCRATCH": str(tmp_path / "first")}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    monkeypatch.setenv("IP2P_SCRATCH", str(tmp_path / "owner"))
    yield cluster, cluster.add_node(num_cpus=1, env_vars={"IP2P_SCRATCH": str(tmp_path / DOOMED)})
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


def test_shards_of_a_killed_node_are_made_by_another_from_the_store(tmp_path: Path, nodes: tuple[Any, Any]) -> None:
    cluster, doomed = nodes

    def is_amid_a_shard() -> bool:
        return any((tmp_path / DOOMED).rglob("triplets/part-*.json"))

    def kill_amid_a_shard() -> None:
        never = threading.Event()
        while not is_amid_a_shard():
            never.wait(0.05)
        cluster.remove_node(doomed, allow_graceful=False)

    with serving_s3() as bucket:  # nodes were started without its address, so it is handed to each worker
        url, address = f"{bucket}/run", {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        ray.init(address=cluster.address, runtime_env={"env_vars": address})
        killing = threading.Thread(target=kill_amid_a_shard, daemon=True)
        with working_copy(url) as owner:
            (owner / "made_from.json").write_text("{}")
            mirror = mirror_of(owner)
            assert mirror is not None and mirror.push() == 1
            killing.start()
            work = ray.remote(max_retries=5, num_cpus=1)(write_shard)
            made_on = ray.get([work.remote(url, number) for number in range(SHARDS)])
            for number in range(SHARDS):
                assert mirror.pull(files_of_shard(number)) == 4
            shards = [path for stage in ("triplets", "pairs") for path in store.RunFolder(owner).shards(stage)]
            assert len(shards) == 2 * SHARDS and all(store.finished(path, "f") for path in shards)
        assert stored(url) == files_of(owner)
    killing.join()
    assert made_on == ["first"] * SHARDS and is_amid_a_shard()
