"""Files that are whole or absent, and shards of parquet with their sidecars.

A shard is written under a temporary name and renamed; its sidecar is written last. A shard is done if its sidecar names
the requested fingerprint and the file is the one that was written: of the size and time that the sidecar names or, if
these differ, of its checksum.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

State = Literal["done", "unfinished", "outdated", "missing"]
"""Of a result: as asked for; as asked for but in part; made from something else or in another way; not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """Facts about a finished shard."""

    fingerprint: str
    rows: int
    sha256: str
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)
    """Rows per reason and other tallies of the stage."""
    extra: dict[str, Any] = field(default_factory=dict)
    version: list[int] = field(default_factory=list)
    """The `version_of` the shard once it was written; sidecars of earlier versions lack it."""


def sidecar_path(path: Path) -> Path:
    """Returns the path of a shard's sidecar."""
    return path.with_suffix(path.suffix + ".json")


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> str:
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


def replace_folder(folder: Path, new: Path) -> None:
    """Puts a finished folder, a sibling, in the place of another one, if that exists."""
    old = old_folder(folder)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def old_folder(folder: Path) -> Path:
    """Returns where a folder lies while another takes its place."""
    return folder.with_name(f".{folder.name}.old")


def write_bytes(path: Path, content: bytes) -> str:
    """Writes a file as `write_atomic` does. Returns its SHA-256."""
    return write_atomic(path, lambda file: file.write(content))


def write_json(path: Path, value: object) -> None:
    """Writes JSON atomically."""
    write_bytes(path, f"{json.dumps(value, indent=2, default=str)}\n".encode())


def read_json(path: Path) -> Any:
    """Reads JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """Reads a JSON object; empty if there is none or it cannot be read."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def version_of(path: Path) -> list[int]:
    """Returns a file's size and time of modification, in nanoseconds: whoever writes to it changes them."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def is_whole(path: Path, sha256: str, version: Sequence[int], *, noted_in: Path) -> bool:
    """Returns whether a file is the one that was written; it is read only if its size or time differs.

    A version that was noted within the tick of the clock in which the file was written does not tell it from one that
    was changed right after.
    """
    if version_of(path) == list(version) and noted_in.stat().st_mtime_ns > version[1]:
        return True
    return sha256_of(path) == sha256


def write_shard(
    path: Path,
    table: pa.Table,
    *,
    fingerprint: str,
    seconds: float,
    counts: Mapping[str, int] | None = None,
    extra: Mapping[str, object] | None = None,
    optional: Collection[str] = (),
) -> Sidecar:
    """Writes a parquet shard and, last, its sidecar; leaves out `optional` columns that no row fills."""
    unfilled = [name for name in optional if name in table.column_names and not _is_filled(table[name])]
    table = table.drop_columns(unfilled)
    sidecar_path(path).unlink(missing_ok=True)
    digest = write_atomic(path, lambda file: pq.write_table(table, file))
    sidecar = Sidecar(
        fingerprint=fingerprint,
        rows=table.num_rows,
        sha256=digest,
        seconds=round(seconds, 3),
        counts=dict(counts or {}),
        extra=dict(extra or {}),
        version=version_of(path),
    )
    write_json(sidecar_path(path), asdict(sidecar))
    return sidecar


def _is_filled(column: pa.ChunkedArray) -> bool:
    """Returns whether a row holds anything but null or an empty text."""
    texts = pa.types.is_string(column.type)
    return any(value for value in column.unique().to_pylist()) if texts else column.null_count < len(column)


def read_sidecar(path: Path) -> Sidecar | None:
    """Reads the sidecar of a shard; None if there is none or it cannot be read."""
    try:
        return Sidecar(**read_json(sidecar_path(path)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        logger.warning("ignored the unreadable sidecar of %s: %s", path, error)
        return None


def state_of(path: Path, fingerprint: str) -> State:
    """Compares a shard's fingerprint with one, without reading the shard."""
    sidecar = read_sidecar(path)
    if sidecar is None or not path.exists():
        return "missing"
    return "done" if sidecar.fingerprint == fingerprint else "outdated"


def is_damaged(path: Path) -> bool:
    """Reads a shard and returns whether it differs from its checksum; one without a sidecar is not finished yet."""
    sidecar = read_sidecar(path)
    return sidecar is not None and sha256_of(path) != sidecar.sha256


def finished(path: Path, fingerprint: str) -> Sidecar | None:
    """Returns the sidecar of a shard that is done under this fingerprint, else None."""
    sidecar = read_sidecar(path)
    if sidecar is None or sidecar.fingerprint != fingerprint or not path.exists():
        return None
    if not is_whole(path, sidecar.sha256, sidecar.version, noted_in=sidecar_path(path)):
        logger.warning("%s does not match its checksum and is made again", path)
        return None
    return sidecar
