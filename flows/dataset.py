"""Captions to a filtered parquet dataset. A shard is rendered as soon as its triplets are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect import State
from prefect.futures import PrefectFuture

from flows import tasks
from flows.handover import use_flow
from flows.runners import as_workers_see, one_thread, raise_first_failure, resources, store_of
from flows.tasks import Count, limit_server
from ip2p import prompts, rendering, uses
from ip2p.config import PipelineConfig
from ip2p.store.mirror import Mirror
from ip2p.store.shard_copy import files_of_shard


@use_flow("dataset", task_runner=one_thread())
def dataset_flow(config: PipelineConfig) -> None:
    """Regenerates the dataset and reports on it."""
    judged = build_dataset(config)
    report = tasks.write_report(config, wait_for=[judged])
    with tasks.for_looking_at("the counts and the report"):
        tasks.publish_counts(config)
        tasks.publish_report(report)


@dataclass(frozen=True, slots=True)
class Futures:
    """Futures of every shard, in order; `submitted` has them all, in the order in which they are worked on."""

    answers: list[PrefectFuture[Any]] = field(default_factory=list)
    triplets: list[PrefectFuture[Any]] = field(default_factory=list)
    pairs: list[PrefectFuture[Any]] = field(default_factory=list)
    submitted: list[PrefectFuture[Any]] = field(default_factory=list)


def submit_shards(config: PipelineConfig, numbers: Sequence[int]) -> Futures:
    """Submits each shard's rendering once the prompts of as many shards as there are workers were submitted.

    Runners start what was submitted first, so rendering begins with the first finished prompt shard and neither stage
    waits for the other to end.
    """
    futures, lead = Futures(), config.runner.max_workers
    for number in range(len(numbers) + lead):
        if number >= lead:
            place = number - lead
            render = tasks.retrying(tasks.render_pairs, config)
            futures.pairs.append(render.submit(config, numbers[place], [futures.triplets[place]]))
            futures.submitted.append(futures.pairs[-1])
        if number < len(numbers):
            _submit_prompts(config, numbers[number], futures)
    return futures


def _submit_prompts(config: PipelineConfig, number: int, futures: Futures) -> None:
    """Submits a shard's prompts; if near-duplicates are left out, answers come in any order and are judged in order."""
    before: list[PrefectFuture[Any]] = []
    if prompts.depends_on_earlier_shards(config):
        futures.answers.append(tasks.retrying(tasks.write_answers, config).submit(config, number))
        before = [futures.answers[-1], *futures.triplets[-1:]]
    futures.triplets.append(tasks.retrying(tasks.write_triplets, config).submit(config, number, wait_for=before))
    futures.submitted.extend([*before[:1], futures.triplets[-1]])


def _wait_for(futures: Futures, numbers: Sequence[int], store: Mirror | None) -> None:
    """Waits until all shards have ended, shows how many have, and copies those that workers have put into a store."""
    num, rendered = (
        len(futures.pairs),
        {id(future): number for future, number in zip(futures.pairs, numbers, strict=True)},
    )
    written = set(map(id, futures.triplets))
    prompts_done = Count("prompts", f"Prompts, shards of {num}", num)
    pairs_done = Count("rendering", f"Rendering, shards of {num}", num)

    def ended(future: PrefectFuture[Any]) -> None:
        if id(future) in written:
            prompts_done.add()
        elif id(future) in rendered:
            pairs_done.add()
            if store is not None:
                store.pull(files_of_shard(rendered[id(future)]))

    raise_first_failure(futures.submitted, ended)


def build_dataset(config: PipelineConfig) -> State[Any]:
    """Takes the steps to the dataset, inside a flow. Only shards go to the task runner."""
    numbers = uses.shard_numbers(config)
    limit_server(config.prompts)
    with resources(config.runner):
        futures = submit_shards(as_workers_see(config), numbers)
    _wait_for(futures, numbers, store_of(config))
    prompts.summarise(config)
    rendering.summarise(config)
    written: State[Any] = tasks.retrying(tasks.write_dataset, config)(config, wait_for=futures.pairs, return_state=True)
    written.result()
    judged: State[Any] = tasks.retrying(tasks.judge_pairs, config)(config, wait_for=[written], return_state=True)
    judged.result()
    return judged
