"""Writes accepted pairs as a parquet dataset for `datasets.load_dataset`, and imports other datasets."""

from ip2p.dataset.write import dataset_state, write_dataset

__all__ = ["dataset_state", "write_dataset"]
