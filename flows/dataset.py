"""Captions to a filtered parquet dataset. A shard is rendered as soon as its triplets are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect import State, Task
from prefect.futures import PrefectFuture

from flows import tasks
from flows.handover import use_flow
from flows.runners import as_workers_see, one_thread, raise_first_failure, resources, store_of
from flows.tasks import Count, limit_server
from ip2p import prompts, rendering, uses
from ip2p.config import PipelineConfig
from ip2p.dataset import Parts
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


def write_dataset(config: PipelineConfig, pairs: Sequence[PrefectFuture[Any]]) -> State[Any]:
    """Writes the dataset inside a flow, as `dataset.write_dataset` does; the parts go to the task runner."""
    begun: State[Any] = tasks.retrying(tasks.begin_dataset, config)(config, wait_for=pairs, return_state=True)
    compared = _submit_parts(tasks.compare_pairs, config, begun.result(), "Comparing pairs")
    planned: State[Any] = tasks.retrying(tasks.plan_dataset, config)(config, wait_for=compared, return_state=True)
    parts: Parts = planned.result()
    gathered = _submit_parts(tasks.gather_pairs, config, parts.bundles, "Dataset, first pass")
    written = _submit_parts(tasks.write_files, config, parts.groups, "Dataset, second pass")
    after: list[Any] = [planned, *gathered, *written]
    finished: State[Any] = tasks.retrying(tasks.finish_dataset, config)(config, wait_for=after, return_state=True)
    finished.result()
    return finished


def _submit_parts(part: Task[..., Any], config: PipelineConfig, num: int, what: str) -> list[PrefectFuture[Any]]:
    """Hands parts of the dataset's work to the task runner, waits until all have ended, and shows how many have.

    Workers that share no folder with this process lack the pairs, so it then does all parts itself.
    """
    done, part = Count(part.name.replace("_", "-"), f"{what}, parts of {num}", num), tasks.retrying(part, config)
    if store_of(config) is not None:
        for number in range(num):
            state: Any = part(config, number, return_state=True)
            state.result()
            done.add()
        return []
    futures = [part.submit(config, number) for number in range(num)]
    raise_first_failure(futures, lambda future: done.add())
    return futures


def build_dataset(config: PipelineConfig) -> State[Any]:
    """Takes the steps to the dataset, inside a flow. Only shards go to the task runner."""
    numbers = uses.shard_numbers(config)
    limit_server(config.prompts)
    with resources(config.runner):
        futures = submit_shards(as_workers_see(config), numbers)
    _wait_for(futures, numbers, store_of(config))
    prompts.summarise(config)
    rendering.summarise(config)
    written = write_dataset(config, futures.pairs)
    judged: State[Any] = tasks.retrying(tasks.judge_pairs, config)(config, wait_for=[written], return_state=True)
    judged.result()
    return judged
