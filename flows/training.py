"""A parquet dataset, of a run or of any other origin, to an evaluated editor.

Nothing here goes to the task runner: a training brings its own processes, one for every GPU that this one sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import State

from flows import tasks
from flows.handover import use_flow
from flows.tasks import training_followed
from ip2p.config import PipelineConfig


@use_flow("training")
def training_flow(config: PipelineConfig, data: str) -> None:
    """Trains on a dataset folder or hub id, evaluates the editor and reports on it."""
    build_editor(config, data)


def build_editor(config: PipelineConfig, data: str, after: Sequence[State[Any]] = ()) -> None:
    """Takes the steps to the editor and the report, inside a flow."""
    with training_followed(config):
        trained = tasks.retrying(tasks.train_editor, config)(config, data, wait_for=after, return_state=True)
    trained.result()
    scored = tasks.retrying(tasks.evaluate_editor, config)(config, data, wait_for=[trained], return_state=True)
    scored.result()
    report = tasks.write_report(config, wait_for=[scored])
    with tasks.for_looking_at("the counts, the scores and the report"):
        tasks.publish_counts(config)
        tasks.publish_scores(config)
        tasks.publish_report(report)
