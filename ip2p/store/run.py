"""A run folder: its places, its `config.json` with the environment it ran in, and its `summary.json`."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ip2p import __version__
from ip2p.store.shards import read_json_or_empty, read_sidecar, sidecar_path, write_json

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
"""Libraries that decide results."""
SHARDED = ("pictures", "answers", "triplets", "candidates", "pairs")
"""Folders of a run that are filled by shards."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The places inside a run."""

    root: Path

    def shard(self, stage: str, number: int) -> Path:
        """Returns the path of a stage's shard: `<stage>/part-00003.parquet`."""
        return self.root / stage / f"part-{number:05d}.parquet"

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    @property
    def training(self) -> Path:
        return self.root / "training"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def shards(self, stage: str) -> list[Path]:
        """Lists the finished shards of a stage, in order."""
        paths = sorted((self.root / stage).glob("part-*.parquet"))
        return [path for path in paths if sidecar_path(path).exists()]

    def drop_shards_from(self, stage: str, num_shards: int) -> None:
        """Removes shards that an earlier, longer run left behind."""
        for path in self.shards(stage):
            if int(path.stem.removeprefix("part-")) >= num_shards:
                sidecar_path(path).unlink()
                path.unlink()


def write_run_config(root: Path, settings: Mapping[str, object], data: str | None) -> None:
    """Writes `config.json`: every setting of the run, the versions that it ran with, and the data trained on.

    Versions of earlier starts in the folder are kept under `earlier`.
    """
    environment = describe_environment(data)
    versions, *before = (versions_of(each) for each in (environment, *read_environments(root)))
    if earlier := [each for number, each in enumerate(before) if each not in (versions, *before[:number])]:
        environment["earlier"] = earlier
    write_json(root / "config.json", {**settings, "environment": environment})


def read_environments(root: Path) -> list[dict[str, Any]]:
    """Reads what a run was started with, from the first versions to the last environment; empty if it does not say."""
    environment = read_json_or_empty(root / "config.json").get("environment")
    if not isinstance(environment, dict):
        return []
    return [*({"libraries": versions} for versions in environment.get("earlier", ())), environment]


def versions_of(environment: Mapping[str, Any]) -> dict[str, str]:
    """Returns the versions of this package, Python and the libraries that an environment names."""
    own = {name: str(environment[name]) for name in ("ip2p", "python") if name in environment}
    return {**own, **environment.get("libraries", {})}


def describe_environment(data: str | None = None) -> dict[str, object]:
    """Returns the versions of this package, Python and the libraries, a checkout's commit, and the data trained on."""
    return {
        "ip2p": __version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "data": data,
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Returns the commit of the checkout that this package lies in, with a `+` if files were changed, or None."""
    folder = Path(__file__).resolve().parents[2]
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


def update_summary(root: Path, stage: str, values: Mapping[str, object]) -> None:
    """Replaces a stage's part of `summary.json` and keeps the other stages' parts."""
    write_json(root / "summary.json", {**read_summary(root), stage: dict(values)})


def read_summary(root: Path) -> dict[str, Any]:
    """Reads the run's `summary.json`; empty if it cannot be read."""
    return read_json_or_empty(root / "summary.json")


def summarise_shards(root: Path, stage: str) -> dict[str, Any]:
    """Returns the number of a stage's finished shards, their seconds, and their counts added up."""
    sidecars = [sidecar for path in RunFolder(root).shards(stage) if (sidecar := read_sidecar(path)) is not None]
    counts = Counter[str]()
    for sidecar in sidecars:
        counts.update(sidecar.counts)
    seconds = round(sum(sidecar.seconds for sidecar in sidecars), 3)
    return {"shards": len(sidecars), **counts, "seconds": seconds}


P = ParamSpec("P")


class HasFolder(Protocol):
    """A config with a run folder."""

    @property
    def out(self) -> Path:
        """The run folder."""


Config = TypeVar("Config", bound=HasFolder)
Figures = TypeVar("Figures", bound=Mapping[str, object])
Entry = Callable[Concatenate[Config, P], Figures]


def summarised(stage: str, *, adds: bool = False) -> Callable[[Entry[Config, P, Figures]], Entry[Config, P, Figures]]:
    """Decorates a stage's entry so that the figures it returns are also written to its part of `summary.json`.

    They replace the part, or with `adds` only those figures of it that have the same names.
    """

    def decorate(entry: Entry[Config, P, Figures]) -> Entry[Config, P, Figures]:
        @wraps(entry)
        def write(config: Config, /, *args: P.args, **kwargs: P.kwargs) -> Figures:
            figures = entry(config, *args, **kwargs)
            before = read_summary(config.out).get(stage, {}) if adds else {}
            update_summary(config.out, stage, {**before, **figures})
            return figures

        return write

    return decorate
