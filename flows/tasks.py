"""The stages as Prefect tasks: each body is one call, takes and returns references and small counts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import Task, task
from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.sync import concurrency
from prefect.settings import temporary_settings

from flows.ending import ASK_ONCE
from ip2p import ablation, dataset, evaluation, prompts, rendering, report, training
from ip2p.config import PipelineConfig, PromptsConfig
from ip2p.console import first_line
from ip2p.evaluation.metrics import Figures
from ip2p.records import content_hash
from ip2p.store import RunFolder, Sidecar, read_summary
from ip2p.store.journal import RecordFile
from ip2p.store.mirror import is_url, url_of
from ip2p.store.shard_copy import shard_copy


def worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Returns False for a user's mistake, which fails the same way again; anything else may have been bad luck."""
    return not isinstance(state.result(raise_on_failure=False), ValueError)


def retrying(stage: Task[..., Any], config: PipelineConfig) -> Task[..., Any]:
    """Returns the task with the run's number of retries."""
    return stage.with_options(retries=config.runner.retries, retry_delay_seconds=1, retry_condition_fn=worth_retrying)


@contextmanager
def at_hand(config: PipelineConfig, number: int) -> Iterator[PipelineConfig]:
    """Yields the config with the folder that a shard is made in: the run's, or a copy of what its store has of it."""
    url = url_of(config.out)
    if not is_url(url):
        yield config
        return
    earlier = ("triplets/",) if prompts.depends_on_earlier_shards(config) else ()
    with shard_copy(url, number, also=earlier) as folder:
        yield replace(config, out=folder)


@task(task_run_name="answers-{number:05d}", cache_policy=NO_CACHE)
def write_answers(config: PipelineConfig, number: int) -> Sidecar | None:
    """Asks a language model about captions."""
    with server_slot(config.prompts), at_hand(config, number) as here:
        return prompts.write_answers(here, number)


@task(task_run_name="prompts-{number:05d}", cache_policy=NO_CACHE)
def write_triplets(config: PipelineConfig, number: int) -> Sidecar:
    """Turns captions into edit triplets."""
    slot = nullcontext() if prompts.depends_on_earlier_shards(config) else server_slot(config.prompts)
    with slot, at_hand(config, number) as here:
        return prompts.write_shard(here, number)


@task(task_run_name="render-{number:05d}", cache_policy=NO_CACHE)
def render_pairs(config: PipelineConfig, number: int, after: Sequence[Sidecar]) -> Sidecar:
    """Renders edit triplets as candidate pairs with scores and verdicts.

    `after` is what it waits for. It is a list, as Prefect would ask its server about an argument that is a future.
    """
    with at_hand(config, number) as here:
        return rendering.write_shard(here, number)


@task(task_run_name="dataset", cache_policy=NO_CACHE)
def write_dataset(config: PipelineConfig) -> dict[str, Any]:
    """Writes the accepted pairs as a parquet dataset."""
    return dataset.write_dataset(config)


@task(task_run_name="oracle", cache_policy=NO_CACHE)
def judge_pairs(config: PipelineConfig) -> Figures:
    """Has the domain judge the pairs."""
    return evaluation.oracle_precision(config)


@task(task_run_name="train", cache_policy=NO_CACHE)
def train_editor(config: PipelineConfig, data: str) -> dict[str, Any]:
    """Trains an editor on a parquet dataset."""
    return training.launch(config, data)


@task(task_run_name="evaluate", cache_policy=NO_CACHE)
def evaluate_editor(config: PipelineConfig, data: str) -> Figures:
    """Measures the editor on held-out edits."""
    bar = Bar("evaluation", "Evaluation, held-out edits")
    return evaluation.evaluate(config, data=data, progress=bar.show)


@task(task_run_name="report", cache_policy=NO_CACHE)
def write_report(config: PipelineConfig) -> Path:
    """Writes the run as one page."""
    return report.write_report(config)


@task(task_run_name="compare", cache_policy=NO_CACHE)
def compare_runs(configs: list[PipelineConfig], path: Path) -> Path:
    """Lays several runs side by side on one page."""
    return ablation.write_page(configs, path)


SHARDS_AT_A_TIME = 1
"""One shard alone keeps `prompts.server.concurrency` requests under way."""


def limit_server(config: PromptsConfig) -> None:
    """Sets the limit on Prefect's server, if the config asks a language-model server."""
    if config.backend == "server":
        with get_client(sync_client=True) as client:
            client.upsert_global_concurrency_limit_by_name(limit_name(config), SHARDS_AT_A_TIME)


def server_slot(config: PromptsConfig) -> AbstractContextManager[object]:
    """Surrounds the work that asks the server; a worker that dies gives its slot back when its lease ends."""
    if config.backend != "server":
        return nullcontext()
    return concurrency(limit_name(config), occupy=1)


def limit_name(config: PromptsConfig) -> str:
    """Names the limit, one for each server."""
    return f"ip2p-server-{content_hash(config.server.base_url)}"


logger = logging.getLogger("ip2p.progress")

SECONDS_BETWEEN_UPDATES = 2.0


@contextmanager
def for_looking_at(what: str, level: int = logging.WARNING) -> Iterator[None]:
    """Surrounds what is shown on Prefect's page only: no run fails because its server does not take it."""
    try:
        yield
    except Exception as error:  # of the client's many kinds
        logger.log(level, "Prefect's page lacks %s: %s", what, first_line(error))


class Bar:
    """Progress artifact, made when there is something to show."""

    def __init__(self, key: str, description: str) -> None:
        self._key, self._description = key, description
        self._id: Any = None
        self._shown, self._at = -1.0, 0.0

    def show(self, share: float) -> None:
        """Shows a share of the work, in 0 to 1, at most every few seconds."""
        percent, now = round(100 * min(max(share, 0.0), 1.0), 1), time.monotonic()
        if percent == self._shown or (percent < 100 and now - self._at < SECONDS_BETWEEN_UPDATES):
            return
        with for_looking_at(f"the progress of {self._key}", logging.DEBUG), temporary_settings(ASK_ONCE):
            if self._id is None:
                self._id = create_progress_artifact(percent, key=f"progress-{self._key}", description=self._description)
            else:
                update_progress_artifact(self._id, percent)
        self._shown, self._at = percent, now


class Count:
    """Bar that counts to a total."""

    def __init__(self, key: str, description: str, total: int) -> None:
        self._bar, self._done, self._total = Bar(key, description), 0, total

    def add(self) -> None:
        """Counts one more."""
        self._done += 1
        self._bar.show(self._done / self._total)


@contextmanager
def training_followed(config: PipelineConfig) -> Iterator[None]:
    """Shows the steps of the training that the body runs, if their number is known beforehand."""
    steps = config.training.max_train_steps
    if steps is None:
        yield
        return
    bar, done = Bar("training", f"Training, {steps} steps"), threading.Event()
    bar.show(0.0)
    follow = threading.Thread(target=_follow, args=(config, steps, bar.show, done), daemon=True)
    follow.start()
    try:
        yield
    finally:
        done.set()
        follow.join()
    bar.show(1.0)


def _follow(config: PipelineConfig, steps: int, show: Callable[[float], object], done: threading.Event) -> None:
    """Reads the log from time to time, and ignores one that an earlier training left."""
    path, started = RunFolder(config.out).training / "loss.jsonl", time.time()
    while not done.wait(SECONDS_BETWEEN_UPDATES):
        if path.exists() and path.stat().st_mtime >= started:
            show((RecordFile(path).read() or [{"step": 0}])[-1]["step"] / steps)


STAGES = ("prompts", "rendering", "dataset", "training")


def publish_counts(config: PipelineConfig) -> None:
    """Publishes a table of every stage's counts and seconds."""
    summary = read_summary(config.out)
    rows = [
        {"stage": stage, "what": name, "number": value}
        for stage in STAGES
        for name, value in _plain(summary.get(stage, {})).items()
    ]
    create_table_artifact(key="counts", table=rows, description="Counts and seconds per stage")


def publish_scores(config: PipelineConfig) -> None:
    """Publishes a table of the editor's scores beside the baselines'."""
    scores = read_summary(config.out).get("evaluation", {})
    editors = {"model": scores, **scores.get("baselines", {})}
    rows = [{"editor": name, **_plain(figures)} for name, figures in editors.items()]
    create_table_artifact(key="scores", table=rows, description="Scores on held-out edits")


def publish_report(path: Path) -> None:
    """Publishes a link to the report."""
    create_link_artifact(
        key="report", link=path.resolve().as_uri(), link_text=str(path), description="The run as one page"
    )


def _plain(figures: Mapping[str, object]) -> dict[str, int | float]:
    return {
        name: value for name, value in figures.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
