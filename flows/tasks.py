"""The stages as Prefect tasks: each body is one call, takes and returns references and small counts."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from flows.limits import server_slot
from flows.progress import Bar
from ip2p import ablation, dataset, evaluation, prompts, rendering, training
from ip2p.config import PipelineConfig
from ip2p.evaluation import report
from ip2p.store import Sidecar


def worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """A user's mistake fails the same way again; anything else may have been bad luck."""
    return not isinstance(state.result(raise_on_failure=False), ValueError)


def retrying(stage: Task[..., Any], config: PipelineConfig) -> Task[..., Any]:
    """The task with the run's number of retries."""
    return stage.with_options(retries=config.runner.retries, retry_delay_seconds=1, retry_condition_fn=worth_retrying)


@task(task_run_name="answers-{number:05d}", cache_policy=NO_CACHE)
def write_answers(config: PipelineConfig, number: int) -> Sidecar | None:
    """What a language model answers about captions."""
    with server_slot(config.prompts):
        return prompts.write_answers(config, number)


@task(task_run_name="prompts-{number:05d}", cache_policy=NO_CACHE)
def write_triplets(config: PipelineConfig, number: int) -> Sidecar:
    """Captions to edit triplets."""
    with nullcontext() if prompts.depends_on_earlier_shards(config) else server_slot(config.prompts):
        return prompts.write_shard(config, number)


@task(task_run_name="render-{number:05d}", cache_policy=NO_CACHE)
def render_pairs(config: PipelineConfig, number: int, triplets: Sidecar) -> Sidecar:
    """Edit triplets to candidate pairs with scores and verdicts."""
    return rendering.write_shard(config, number)


@task(task_run_name="dataset", cache_policy=NO_CACHE)
def write_dataset(config: PipelineConfig) -> dict[str, Any]:
    """Accepted pairs to a parquet dataset."""
    return dataset.write_dataset(config)


@task(task_run_name="oracle", cache_policy=NO_CACHE)
def judge_pairs(config: PipelineConfig) -> dict[str, Any]:
    """The domain's own word on the pairs."""
    return evaluation.oracle_precision(config)


@task(task_run_name="train", cache_policy=NO_CACHE)
def train_editor(config: PipelineConfig, data: str) -> dict[str, Any]:
    """A parquet dataset to an editor."""
    return training.launch(config, data)


@task(task_run_name="evaluate", cache_policy=NO_CACHE)
def evaluate_editor(config: PipelineConfig, data: str) -> dict[str, Any]:
    """The editor's figures on held-out edits."""
    bar = Bar("evaluation", "Evaluation, held-out edits")
    return evaluation.evaluate(config, data=data, progress=bar.show)


@task(task_run_name="report", cache_policy=NO_CACHE)
def write_report(config: PipelineConfig) -> Path:
    """The run as one page."""
    return report.write_report(config)


@task(task_run_name="compare", cache_policy=NO_CACHE)
def compare_runs(configs: list[PipelineConfig], path: Path) -> Path:
    """Several runs as one page."""
    return ablation.write_page(configs, path)
