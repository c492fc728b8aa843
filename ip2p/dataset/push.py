"""A finished dataset to the hub, in one commit that also removes the files of an earlier, longer one."""

from __future__ import annotations

import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

PATTERNS = ["README.md", "data/*.parquet"]


def push_dataset(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Uploads card and parquet files of `dataset/` to a dataset repository, which is made where there is none.

    Returns its address. The token comes from the environment variable HF_TOKEN alone. ValueError where that is not set,
    where the folder holds no dataset, or where the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    token = os.environ.get("HF_TOKEN")
    if not token:
        raise ValueError("pushing to the hub needs a token with write access. Set the environment variable HF_TOKEN.")
    files = sorted(folder.glob("data/*.parquet"))
    if not files:
        raise ValueError(f"{folder} holds no parquet file. Run `ip2p dataset` first.")
    api = HfApi(token=token)
    try:
        address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            repo_type="dataset",
            allow_patterns=PATTERNS,
            delete_patterns=["data/*.parquet"],
            commit_message=f"{len(files)} files",
        )
    except (HfHubHTTPError, HFValidationError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the hub refused {repo_id}: {first} Check the name and what the token may write.") from error
    logger.info("pushed %d files to %s", len(files), address)
    return str(address)
