"""The whole pipeline as a flow, at tiny size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import TaskRunSort

from flows.dataset import dataset_flow
from flows.pipeline import pipeline_flow
from flows.runners import with_runner
from flows.tasks import limit_name
from ip2p import uses
from ip2p.config import PipelineConfig, ScreeningConfig, ServerConfig
from ip2p.store import RunFolder, read_json, read_summary, sidecar_path
from tests import processes
from tests.chat_server import serving
from tests.tiny import CAPTIONS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows")]


def _times(root: Path) -> dict[Path, int]:
    made = [*root.glob("*/part-*.parquet"), *root.glob("dataset/data/*"), *root.glob("model/**/*.safetensors")]
    made += root.glob("evaluation/parts/*.parquet")
    return {path: path.stat().st_mtime_ns for path in made}


def test_one_flow_makes_dataset_model_evaluation_and_report(finished_run: PipelineConfig) -> None:
    folder = RunFolder(finished_run.out)
    assert len(folder.shards("candidates")) == 3
    assert sum(pq.read_metadata(path).num_rows for path in folder.dataset.glob("data/*.parquet")) == 32
    assert (folder.model / "model_index.json").exists()
    assert (folder.report / "index.html").stat().st_size > 10_000


def test_the_summary_has_counts_and_seconds_of_every_stage(finished_run: PipelineConfig) -> None:
    summary = read_summary(finished_run.out)
    assert set(summary) == {"prompts", "rendering", "dataset", "training", "evaluation"}
    assert summary["prompts"]["kept"] == 16
    assert summary["rendering"]["accepted"] == 32
    assert all(part["seconds"] >= 0 for part in summary.values())
    assert "oracle_precision" in summary["dataset"]


def test_the_saved_config_is_resolved_and_names_what_it_ran_with(finished_run: PipelineConfig) -> None:
    saved = read_json(finished_run.out / "config.json")
    assert saved["rendering"]["num_inference_steps"] == 2
    assert saved["environment"]["libraries"]["torch"]


def test_task_runs_are_named_after_their_stage_and_shard(finished_run: PipelineConfig) -> None:
    expected = {f"{stage}-{number:05d}" for stage in ("prompts", "render") for number in range(3)}
    expected |= {"dataset", "oracle", "train", "evaluate", "report"}

    def names() -> set[str]:
        with get_client(sync_client=True) as client:
            return {run.name for run in client.read_task_runs(limit=200, sort=TaskRunSort.END_TIME_DESC)}

    processes.wait_until(lambda: expected <= names())  # the server records task runs a moment after they end


def test_the_run_leaves_artifacts_for_counts_scores_and_the_report(finished_run: PipelineConfig) -> None:
    with get_client(sync_client=True) as client:
        found = {
            key: client.request("GET", "/artifacts/{key}/latest", path_params={"key": key}).json()["data"]
            for key in ("counts", "scores", "report")
        }
    assert "index.html" in found["report"]
    assert "kept" in found["counts"]
    assert "model" in found["scores"]


def test_running_a_finished_run_again_makes_nothing_anew(finished_run: PipelineConfig) -> None:
    before = _times(finished_run.out)
    pipeline_flow(finished_run)
    assert before
    assert _times(finished_run.out) == before


def test_a_deleted_shard_is_made_again_and_no_other(ready_config: PipelineConfig) -> None:
    dataset_flow(ready_config)
    folder = RunFolder(ready_config.out)
    before, pairs = _times(ready_config.out), folder.shard("pairs", 1).read_bytes()
    for stage in ("candidates", "pairs"):
        folder.shard(stage, 1).unlink()
        sidecar_path(folder.shard(stage, 1)).unlink()
    dataset_flow(ready_config)
    changed = {
        path.relative_to(ready_config.out)
        for path, time in _times(ready_config.out).items()
        if before.get(path) != time
    }
    assert changed == {Path("candidates/part-00001.parquet"), Path("pairs/part-00001.parquet")}
    assert folder.shard("pairs", 1).read_bytes() == pairs


def test_a_run_counts_as_complete_until_a_result_an_input_or_a_setting_changes(finished_run: PipelineConfig) -> None:
    uses.record_completion(finished_run, "pipeline")
    assert uses.is_complete(finished_run, "pipeline")
    assert not uses.is_complete(finished_run, "dataset")
    faster = dataclasses.replace(finished_run, rendering=dataclasses.replace(finished_run.rendering, batch_size=1))
    assert uses.is_complete(faster, "pipeline")
    other = dataclasses.replace(
        finished_run, filtering=dataclasses.replace(finished_run.filtering, max_pairs_per_triplet=1)
    )
    assert not uses.is_complete(other, "pipeline")
    shard = RunFolder(finished_run.out).shard("triplets", 0)
    content = shard.read_bytes()
    shard.unlink()
    assert not uses.is_complete(finished_run, "pipeline")
    shard.write_bytes(content)


def with_prompts(config: PipelineConfig, **changed: object) -> PipelineConfig:
    return dataclasses.replace(config, prompts=dataclasses.replace(config.prompts, **changed))  # type: ignore[arg-type]


def test_rendering_starts_on_the_first_finished_prompt_shard(ready_config: PipelineConfig) -> None:
    dataset_flow(ready_config)
    folder = RunFolder(ready_config.out)
    triplets, pairs = ([path.stat().st_mtime_ns for path in folder.shards(stage)] for stage in ("triplets", "pairs"))
    assert len(triplets) == 3 and pairs[0] < triplets[1] and pairs[1] < triplets[2]


def test_near_duplicates_are_the_same_with_two_workers_as_with_one(ready_config: PipelineConfig) -> None:
    screening = ScreeningConfig(near_duplicate=0.6)
    chained = with_prompts(ready_config, screening=screening, shard_size=3)
    found = []
    for workers in (1, 2):
        runner = dataclasses.replace(chained.runner, max_workers=workers)
        config = dataclasses.replace(chained, runner=runner, out=chained.out.with_name(f"workers-{workers}"))
        with_runner(dataset_flow, runner)(config)
        found.append([pq.read_table(path).to_pylist() for path in RunFolder(config.out).shards("triplets")])
    assert found[0] == found[1]
    assert sum(row["reason"] == "near_duplicate" for shard in found[0] for row in shard) > 0


def test_the_server_backend_is_asked_by_one_shard_at_a_time(ready_config: PipelineConfig, tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(CAPTIONS))
    with serving() as server:
        server.seconds = 0.05
        asked = ServerConfig(base_url=server.url, concurrency=2, timeout=30.0)
        config = with_prompts(
            ready_config,
            captions=str(captions),
            backend="server",
            model="m",
            server=asked,
            shard_size=2,
            num_examples=0,
        )
        config = dataclasses.replace(config, runner=dataclasses.replace(config.runner, max_workers=3))
        with_runner(dataset_flow, config.runner)(config)
        assert server.most_at_once <= 2 and sum(server.asked.values()) == len(CAPTIONS)
    with get_client(sync_client=True) as client:
        assert client.read_global_concurrency_limit_by_name(limit_name(config.prompts)).limit == 1
