"""Knobs of the parquet dataset."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ip2p.config.evaluation import EvaluationConfig
from ip2p.config.fields import check, check_positive, check_unit
from ip2p.config.filtering import FilteringConfig, ScoringConfig
from ip2p.config.prompts import PromptsConfig
from ip2p.config.rendering import RenderingConfig
from ip2p.config.training import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """Accepted pairs to a parquet dataset that `datasets.load_dataset` reads."""

    test_fraction: float = 0.05
    """Share of the triplets, by hash, that goes to the test split."""
    train_share: float = 1.0
    """Share of the training split's triplets, by hash, that is used. A larger one adds some and takes none away."""
    rows_per_shard: int = 1000
    """Pairs per parquet file."""
    seed: int = 0
    """Seed of the order of the rows."""
    max_duplicate_similarity: float | None = None
    """Leave out a pair whose two images are both at least this alike, by CLIP, to those of one that is in already."""
    license: str = "other"
    """SPDX identifier for the dataset card."""

    def __post_init__(self) -> None:
        check_positive(self, "rows_per_shard")
        check_unit("test_fraction", self.test_fraction)
        check(
            0 < self.train_share <= 1,
            f"train_share must lie above 0 and up to 1, got {self.train_share:g}. Set it to 1 to train on all pairs.",
        )
        if self.max_duplicate_similarity is not None:
            check_unit("max_duplicate_similarity", self.max_duplicate_similarity)


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
