"""What lies in a run folder, and when a part of it counts as done.

A shard is written under a temporary name and renamed; its sidecar comes last. A shard is done when its sidecar is
there, names the fingerprint that is asked for and its checksum holds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What is known of a finished shard."""

    fingerprint: str
    rows: int
    sha256: str
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)
    """Rows per reason and other tallies of the stage."""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The places inside a run."""

    root: Path

    def shard(self, stage: str, number: int) -> Path:
        """Path of a stage's shard: `<stage>/part-00003.parquet`."""
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
        """All finished shards of a stage, in order."""
        found = sorted((self.root / stage).glob("part-*.parquet"))
        return [path for path in found if sidecar_path(path).exists()]

    def drop_shards_from(self, stage: str, num_shards: int) -> None:
        """Removes shards that an earlier, longer run left behind."""
        for path in self.shards(stage):
            if int(path.stem.removeprefix("part-")) >= num_shards:
                sidecar_path(path).unlink()
                path.unlink()


_held: dict[Path, IO[str]] = {}
"""Open lock files of the run folders that this process works in."""


def hold(root: Path) -> None:
    """Keeps other processes out of a run folder as long as this one lives. ValueError where another one is in it.

    It is a ValueError too where the folder cannot be made or written to.
    What a killed process left half-written there is removed.
    """
    folder = root.resolve()
    if sys.platform == "win32" or folder in _held:
        return
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise ValueError(f"{root} cannot be written to: {error.strerror}. Give another folder with --out.") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise ValueError(f"{root} is in use by {owner}. Wait for it, or give another folder with --out.") from error
    except OSError as error:  # a file system without locks
        logger.warning("%s cannot be locked (%s): start no second run in it", root, error)
    else:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
    _held[folder] = file
    for path in folder.rglob(".*.partial"):
        if path.is_file():
            path.unlink(missing_ok=True)


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of a shard lies."""
    return path.with_suffix(path.suffix + ".json")


def write_atomic(path: Path, write: Callable[[IO[bytes]], None]) -> str:
    """Writes a file under a temporary name, flushes it to disk and renames it. Returns its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        digest = sha256_of(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    text = json.dumps(value, indent=2, default=str) + "\n"
    write_atomic(path, lambda file: _write_all(file, text.encode()))


def _write_all(file: IO[bytes], content: bytes) -> None:
    file.write(content)


def read_json(path: Path) -> Any:
    """Reads JSON."""
    return json.loads(path.read_text())


def update_summary(root: Path, stage: str, values: Mapping[str, Any]) -> None:
    """Replaces a stage's part of `summary.json`; the other stages' parts stay."""
    path = root / "summary.json"
    write_json(path, {**read_summary(root), stage: dict(values)})


def read_summary(root: Path) -> dict[str, Any]:
    """The run's `summary.json`; empty where there is none that can be read."""
    try:
        found = read_json(root / "summary.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def summarise_shards(root: Path, stage: str) -> dict[str, Any]:
    """Number of a stage's finished shards, their counts added up and their seconds."""
    sidecars = [sidecar for path in RunFolder(root).shards(stage) if (sidecar := read_sidecar(path)) is not None]
    counts: Counter[str] = Counter()
    for sidecar in sidecars:
        counts.update(sidecar.counts)
    seconds = round(sum(sidecar.seconds for sidecar in sidecars), 3)
    return {"shards": len(sidecars), **counts, "seconds": seconds}


def write_run_config(root: Path, settings: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    """Writes `config.json`: every setting of the run, and under `environment` what it ran with."""
    write_json(root / "config.json", {**settings, "environment": dict(environment)})


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_shard(
    path: Path,
    table: pa.Table,
    *,
    fingerprint: str,
    seconds: float,
    counts: Mapping[str, int] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Sidecar:
    """Writes a parquet shard and, last, its sidecar."""
    sidecar_path(path).unlink(missing_ok=True)
    digest = write_atomic(path, lambda file: pq.write_table(table, file))
    sidecar = Sidecar(
        fingerprint=fingerprint,
        rows=table.num_rows,
        sha256=digest,
        seconds=round(seconds, 3),
        counts=dict(counts or {}),
        extra=dict(extra or {}),
    )
    write_json(sidecar_path(path), asdict(sidecar))
    return sidecar


def read_sidecar(path: Path) -> Sidecar | None:
    """The sidecar of a shard, or None where there is none that can be read."""
    try:
        return Sidecar(**read_json(sidecar_path(path)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        logger.warning("ignored the unreadable sidecar of %s: %s", path, error)
        return None


def finished(path: Path, fingerprint: str) -> Sidecar | None:
    """The sidecar of a shard that is done under this fingerprint, or None."""
    sidecar = read_sidecar(path)
    if sidecar is None or sidecar.fingerprint != fingerprint or not path.exists():
        return None
    if sha256_of(path) != sidecar.sha256:
        logger.warning("%s does not match its checksum and is made again", path)
        return None
    return sidecar


def visible_parquet(folder: Path) -> list[Path]:
    """The parquet files below a folder, in order, without those of hidden folders or names."""
    found = sorted(folder.rglob("*.parquet"))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
