"""The parts of a dataset are shared by the workers of a flow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from prefect import flow

from flows.dataset import write_dataset
from flows.runners import make_task_runner
from ip2p import dataset
from ip2p.config import PipelineConfig, RunnerConfig
from ip2p.dataset import spilling
from tests.test_dataset import contents, write_pairs
from tests.test_dataset_parts import whole

__all__ = ["whole"]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows")]


def test_two_workers_of_a_flow_make_the_bytes_of_one(
    whole: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @flow(task_runner=make_task_runner(RunnerConfig(max_workers=2)))
    def only_the_dataset(config: PipelineConfig) -> None:
        write_dataset(config, [])

    for name in ("BUNDLE_BYTES", "GROUP_BYTES"):
        monkeypatch.setattr(spilling, name, 1)
    shared = replace(whole, out=tmp_path / "shared")
    write_pairs(shared)
    only_the_dataset(shared)
    assert contents(shared.out / "dataset") == contents(whole.out / "dataset")
    assert dataset.plan_dataset(shared) == (0, 0)
