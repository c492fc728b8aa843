"""One Prefect server for all flow tests, which are slow for it, and a run that starts from ready triplets."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from ip2p.config import PipelineConfig
from tests import prefect_server, processes, tiny

WORDS = ("red", "dark", "pink", "small")


@pytest.fixture(scope="session", autouse=True)
def prefect() -> Iterator[None]:
    """A server with an empty database."""
    with prefect_server.harness():
        yield


def write_ready_config(out: Path, *, sd: Path, clip: Path, lm: Path) -> PipelineConfig:
    """A tiny run over three shards of ready triplets."""
    config = tiny.write_tiny_config(out, sd=sd, clip=clip, lm=lm)
    lines = [
        {"input": caption, "edit": f"make it {word}", "output": f"{caption} {word}"}
        for caption in tiny.CAPTIONS
        for word in WORDS
    ]
    triplets = out.parent / "triplets.jsonl"
    triplets.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return dataclasses.replace(
        config, prompts=dataclasses.replace(config.prompts, captions=str(triplets), shard_size=6)
    )


@pytest.fixture
def ready_config(tmp_path: Path, tiny_sd: Path, tiny_clip: Path, tiny_lm: Path) -> PipelineConfig:
    """A run in an empty folder."""
    return write_ready_config(tmp_path / "run", sd=tiny_sd, clip=tiny_clip, lm=tiny_lm)


@pytest.fixture(scope="session")
def forked_training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trainings in forked children, which start in no time; that of `finished_run` is launched as a user's is."""
    log = tmp_path_factory.mktemp("training") / "log"

    def fork(command: list[str]) -> None:
        words = command[command.index("ip2p.training") + 1 :]
        processes.run(processes.training, words, log, os.environ | {"ACCELERATE_USE_CPU": "true"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ip2p.training.launching.run_child", fork)
        yield


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path, tiny_clip: Path, tiny_lm: Path
) -> PipelineConfig:
    """A run whose whole pipeline has been through its flow once; tests leave it as they found it."""
    from flows.pipeline import pipeline_flow
    from ip2p import uses

    config = write_ready_config(tmp_path_factory.mktemp("flows") / "run", sd=tiny_sd, clip=tiny_clip, lm=tiny_lm)
    uses.write_config(config)
    pipeline_flow(config)
    uses.record_completion(config, "pipeline")
    return config


@contextmanager
def one_thread() -> Iterator[None]:
    """torch as in a worker of one thread: sums over other parts round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
