"""A dataset that was killed at many random moments is the one that never was: row for row, byte for byte."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prefect.settings import PREFECT_API_URL

from ip2p.config import PipelineConfig, to_dict
from ip2p.store import RunFolder
from tests import processes

KILLS = 12


def words_for(config: PipelineConfig) -> list[str]:
    path = config.out.with_suffix(".json")
    path.write_text(json.dumps(to_dict(config)))
    return ["dataset", "--config", str(path)]


def environment() -> dict[str, str]:
    return os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "OMP_NUM_THREADS": "1"}


def num_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def kill_at_a_random_moment(config: PipelineConfig, rng: random.Random) -> bool:
    """Starts the command and kills its whole process group amid its work; False if it was through before that."""
    child = processes.fork(processes.command, words_for(config), config.out.with_suffix(".log"), environment())
    before, more = num_files(config.out), rng.randint(1, 4)
    while num_files(config.out) < before + more and child.exitcode is None:
        child.join(0.005)
    child.join(rng.uniform(0, 0.1))
    if child.exitcode is not None:
        return False
    processes.kill(child)
    return True


def tables(config: PipelineConfig) -> dict[str, list[dict[str, object]]]:
    folder = RunFolder(config.out)
    files = [*folder.shards("candidates"), *folder.shards("pairs"), *(folder.dataset / "data").glob("*.parquet")]
    return {str(path.relative_to(config.out)): pq.read_table(path).to_pylist() for path in files}


@pytest.mark.slow
def test_many_kills_leave_no_trace(ready_config: PipelineConfig) -> None:
    prompts = dataclasses.replace(ready_config.prompts, shard_size=1)
    whole = dataclasses.replace(ready_config, prompts=prompts, out=ready_config.out.parent / "whole")
    killed = dataclasses.replace(whole, out=ready_config.out.parent / "killed")
    rng, kills = random.Random(0), 0
    while kills < KILLS and kill_at_a_random_moment(killed, rng):
        kills += 1
    for config in (killed, whole):
        processes.run(processes.command, words_for(config), config.out.with_suffix(".log"), environment())
    assert kills == KILLS, f"the work was over after {kills} kills: give it more shards"
    found, expected = tables(killed), tables(whole)
    assert len(expected) > 2 * 16
    assert found == expected
    assert not [path for path in killed.out.rglob("*") if "partial" in path.name]
