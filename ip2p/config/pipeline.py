"""The whole pipeline as one value, and how its shards are run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ip2p.config.checks import check, check_positive
from ip2p.config.dataset import DatasetConfig
from ip2p.config.evaluation import EvaluationConfig
from ip2p.config.filtering import FilteringConfig, ScoringConfig
from ip2p.config.prompts import PromptsConfig
from ip2p.config.rendering import RenderingConfig
from ip2p.config.training import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """How Prefect runs the shards."""

    kind: Literal["threads", "processes", "ray"] = "threads"
    """One process with threads, one process per GPU, or a Ray cluster."""
    max_workers: int = 1
    """Shards at a time."""
    address: str | None = None
    """Ray cluster to join; a local one by default."""
    num_gpus: float | None = None
    """GPUs that a shard takes on a Ray cluster, parts of one too; one where this machine has any, else none."""
    retries: int = 1
    """Times a failed shard is tried again."""

    def __post_init__(self) -> None:
        check_positive(self, "max_workers")
        check(
            self.num_gpus is None or self.num_gpus >= 0,
            f"num_gpus must not be negative, got {self.num_gpus}. Set it to 0 for shards that need no GPU.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """The whole pipeline."""

    out: Path = Path("runs/default")
    """The run folder."""
    prompts: PromptsConfig = PromptsConfig()
    rendering: RenderingConfig = field(default_factory=RenderingConfig)
    scoring: ScoringConfig = ScoringConfig()
    filtering: FilteringConfig = field(default_factory=FilteringConfig)
    dataset: DatasetConfig = DatasetConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runner: RunnerConfig = RunnerConfig()
