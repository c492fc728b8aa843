"""Writes accepted pairs as a parquet dataset for `datasets.load_dataset`, and imports other datasets."""

from ip2p.dataset.write import write_dataset

__all__ = ["write_dataset"]
