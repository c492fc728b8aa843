"""Writes accepted pairs as a parquet dataset for `datasets.load_dataset`, and imports other datasets."""

from ip2p.dataset.write import (
    Parts,
    begin_dataset,
    compare_pairs,
    dataset_state,
    finish_dataset,
    gather_pairs,
    plan_dataset,
    write_dataset,
    write_files,
)

__all__ = [
    "Parts",
    "begin_dataset",
    "compare_pairs",
    "dataset_state",
    "finish_dataset",
    "gather_pairs",
    "plan_dataset",
    "write_dataset",
    "write_files",
]
