"""Uploads to the hub: checks the token, words refusals, and names sources on cards."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi

from ip2p.console import first_line

logger = logging.getLogger(__name__)


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turns the hub's refusal of an upload into a ValueError of one line with the way out."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"the hub refused {repo_id}: {first_line(error)} Check the name and the token's write access."
        ) from error


def check_token(token: str | None) -> str:
    """Returns the token. ValueError with the way out if there is none."""
    if not token:
        raise ValueError("pushing to the hub needs a token with write access. Set the environment variable HF_TOKEN.")
    return token


def public_name(source: str) -> str:
    """Returns a hub id as it is, and the last part of a local path."""
    path = Path(source).expanduser()
    return path.name if path.is_absolute() or path.exists() else source


def push_dataset(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Uploads the card and parquet files of `dataset/` to a dataset repository, which is created if there is none.

    Returns its address. The token is taken from the environment variable HF_TOKEN only. ValueError if it is not set, if
    the folder holds no dataset, or if the hub refuses.
    """
    token = check_token(os.environ.get("HF_TOKEN"))
    files = sorted(folder.glob("data/*.parquet"))
    if not files:
        raise ValueError(f"{folder} holds no parquet file. Run `ip2p dataset` first.")
    api = HfApi(token=token)
    with hub_errors(repo_id):
        address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            repo_type="dataset",
            allow_patterns=["README.md", "data/*.parquet"],
            delete_patterns=["data/*.parquet"],
            commit_message=f"{len(files)} files",
        )
    logger.info("pushed %d files to %s", len(files), address)
    return str(address)
