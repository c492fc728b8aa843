"""What a run ran with: versions of the libraries that decide results, and the commit of a checkout."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from ip2p import __version__

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "open_clip_torch",
    "datasets",
    "prefect",
    "pyarrow",
    "numpy",
)


def describe_environment(data: str | None = None) -> dict[str, Any]:
    """Returns the versions of this package, Python and the libraries, a checkout's commit, and the data trained on."""
    versions = {name: version for name in LIBRARIES if (version := _version(name))}
    return {
        "ip2p": __version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "data": data,
        "libraries": versions,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Returns the commit of the checkout that this package lies in, with a `+` if files were changed, or None."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + "+" * bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
