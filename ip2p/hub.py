"""The hub as a place to write to: whose token, what is said where it refuses, and under what names cards speak."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ip2p.errors import first_line


@contextmanager
def telling_refusals(repo_id: str) -> Iterator[None]:
    """What the hub says against an upload becomes a ValueError of one line with the way out."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except (HfHubHTTPError, HFValidationError) as error:
        first = first_line(error)
        raise ValueError(f"the hub refused {repo_id}: {first} Check the name and what the token may write.") from error


def check_token(token: str | None) -> str:
    """The token, or ValueError with the way out."""
    if not token:
        raise ValueError("pushing to the hub needs a token with write access. Set the environment variable HF_TOKEN.")
    return token


def public_name(source: str) -> str:
    """A hub id as it is; of a local path its last part."""
    path = Path(source).expanduser()
    return path.name if path.is_absolute() or path.exists() else source
