"""A finished dataset to the hub, in one commit that also removes the files of an earlier, longer one."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ip2p.hub import check_token, telling_refusals

logger = logging.getLogger(__name__)

PATTERNS = ["README.md", "data/*.parquet"]


def push_dataset(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Uploads card and parquet files of `dataset/` to a dataset repository, which is made where there is none.

    Returns its address. The token comes from the environment variable HF_TOKEN alone. ValueError where that is not set,
    where the folder holds no dataset, or where the hub refuses.
    """
    from huggingface_hub import HfApi

    token = check_token(os.environ.get("HF_TOKEN"))
    files = sorted(folder.glob("data/*.parquet"))
    if not files:
        raise ValueError(f"{folder} holds no parquet file. Run `ip2p dataset` first.")
    api = HfApi(token=token)
    with telling_refusals(repo_id):
        address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            repo_type="dataset",
            allow_patterns=PATTERNS,
            delete_patterns=["data/*.parquet"],
            commit_message=f"{len(files)} files",
        )
    logger.info("pushed %d files to %s", len(files), address)
    return str(address)
