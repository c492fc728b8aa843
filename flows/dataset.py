"""Captions to a filtered parquet dataset. A shard is rendered as soon as its triplets are written."""

from __future__ import annotations

from typing import Any

from prefect import State, flow, unmapped
from prefect.task_runners import ThreadPoolTaskRunner

from flows import artifacts, tasks
from flows.runners import raise_first_failure, resources
from ip2p import plan, rendering
from ip2p.config import PipelineConfig
from ip2p.store import summarise_shards, update_summary


@flow(name="dataset", task_runner=ThreadPoolTaskRunner(max_workers=1))
def dataset_flow(config: PipelineConfig) -> None:
    """Regenerates the dataset and reports on it."""
    judged = build_dataset(config)
    artifacts.publish_counts(config)
    artifacts.publish_report(tasks.write_report(config, wait_for=[judged]))


def build_dataset(config: PipelineConfig) -> State[Any]:
    """The steps to the dataset, inside a flow. Only shards go to the task runner; the rest runs where the flow does."""
    numbers = plan.shard_numbers(config)
    with resources(config.runner):
        triplets = tasks.retrying(tasks.write_triplets, config).map(unmapped(config), numbers)
        pairs = tasks.retrying(tasks.render_pairs, config).map(unmapped(config), numbers, triplets)
    raise_first_failure([*triplets, *pairs])
    update_summary(config.out, "prompts", summarise_shards(config.out, "triplets"))
    update_summary(config.out, "rendering", rendering.summarise(config))
    made: State[Any] = tasks.retrying(tasks.write_dataset, config)(config, wait_for=pairs, return_state=True)
    update_summary(config.out, "dataset", made.result())
    judged: State[Any] = tasks.retrying(tasks.judge_pairs, config)(config, wait_for=[made], return_state=True)
    update_summary(config.out, "dataset", made.result() | judged.result())
    return judged
