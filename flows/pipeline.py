"""Everything, end to end: captions to an evaluated editor in one DAG."""

from __future__ import annotations

from flows.dataset import build_dataset
from flows.handover import use_flow
from flows.runners import one_thread
from flows.training import build_editor
from ip2p.config import PipelineConfig
from ip2p.store import RunFolder


@use_flow("pipeline", task_runner=one_thread())
def pipeline_flow(config: PipelineConfig) -> None:
    """Makes the dataset, trains on it, evaluates the editor and reports on the run."""
    judged = build_dataset(config)
    build_editor(config, str(RunFolder(config.out).dataset), after=[judged])
