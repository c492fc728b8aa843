"""Knobs of the parquet dataset."""

from __future__ import annotations

from dataclasses import dataclass

from ip2p.config.checks import check, check_positive, check_unit


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
