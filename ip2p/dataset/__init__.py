"""Accepted pairs to a parquet dataset for `datasets.load_dataset`, and datasets from elsewhere to our columns."""

from ip2p.dataset.write import write_dataset

__all__ = ["write_dataset"]
