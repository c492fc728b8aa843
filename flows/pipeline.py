"""Everything, end to end: captions to an evaluated editor in one DAG."""

from __future__ import annotations

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.dataset import build_dataset
from flows.training import build_editor
from ip2p.config import PipelineConfig
from ip2p.store import RunFolder


@flow(name="pipeline", task_runner=ThreadPoolTaskRunner(max_workers=1))
def pipeline_flow(config: PipelineConfig) -> None:
    """Makes the dataset, trains on it, evaluates the editor and reports on the run."""
    judged = build_dataset(config)
    build_editor(config, str(RunFolder(config.out).dataset), after=[judged])
