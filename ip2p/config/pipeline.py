"""Settings of the dataset and of the runner, and the whole pipeline as one config."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ip2p.config.evaluation import EvaluationConfig
from ip2p.config.fields import (
    OMIT_IF_EMPTY,
    RESULT_FREE,
    check,
    check_not_negative,
    check_positive,
    check_share,
    check_unit,
)
from ip2p.config.filtering import FilteringConfig, ScoringConfig
from ip2p.config.prompts import PromptsConfig
from ip2p.config.rendering import RenderingConfig
from ip2p.config.training import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """Writes accepted pairs as a parquet dataset that `datasets.load_dataset` reads."""

    test_fraction: float = 0.05
    """Fraction of the triplets, chosen by hash, that forms the test split."""
    train_share: float = 1.0
    """Fraction of the training triplets to use, chosen by hash. A larger fraction contains every smaller one."""
    rows_per_shard: int = 1000
    """Pairs per parquet file."""
    seed: int = 0
    """Seed of the row order."""
    max_duplicate_similarity: float | None = None
    """Drop pairs whose two images both have at least this CLIP similarity to a kept pair's. Default: keep all."""
    edit_prompt: Literal["written", "shown"] = field(default="written", metadata=OMIT_IF_EMPTY)
    """Instruction of a pair: the "written" one it was made for, or the one it has "shown" to `filtering.vlm_rewrite`,
    with the written one in `written_prompt`. A pair that shows none keeps the written one."""
    license: str = "other"
    """SPDX identifier for the dataset card."""

    def __post_init__(self) -> None:
        check_positive(self, "rows_per_shard")
        check_unit("test_fraction", self.test_fraction)
        check_share("train_share", self.train_share)
        check_unit("max_duplicate_similarity", self.max_duplicate_similarity)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """Runs the shards with Prefect."""

    kind: Literal["threads", "processes", "ray"] = "threads"
    """Threads in one process, one process per GPU, or a Ray cluster."""
    max_workers: int = 1
    """Shards to run at the same time."""
    address: str | None = None
    """Address of the Ray cluster to join. Default: start a local one."""
    num_gpus: float | None = None
    """GPUs per shard on a Ray cluster, fractions allowed. Default: 1 if this machine has a GPU, else 0."""
    retries: int = 1
    """Retries of a failed shard."""

    def __post_init__(self) -> None:
        check_positive(self, "max_workers")
        check_not_negative(self, "num_gpus")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """Holds every setting of a run, a section per stage."""

    out: Path = field(default=Path("runs/default"), metadata=RESULT_FREE)
    """Run folder, or a URL such as s3://bucket/run."""
    prompts: PromptsConfig = PromptsConfig()
    rendering: RenderingConfig = field(default_factory=RenderingConfig)
    scoring: ScoringConfig = ScoringConfig()
    filtering: FilteringConfig = field(default_factory=FilteringConfig)
    dataset: DatasetConfig = DatasetConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runner: RunnerConfig = RunnerConfig()

    def __post_init__(self) -> None:
        check(
            self.dataset.edit_prompt == "written" or self.filtering.vlm_rewrite,
            "dataset.edit_prompt shown needs a judge's instructions, got none. Set filtering.vlm_rewrite.",
        )
