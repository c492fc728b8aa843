"""What lies on disk: shards with sidecars, run folders, journals of lines and the mirror of an object store."""

from __future__ import annotations

from ip2p.store.locks import hold, lock_file
from ip2p.store.shards import (
    RunFolder,
    Sidecar,
    finished,
    read_json,
    read_json_or_empty,
    read_sidecar,
    read_summary,
    sha256_of,
    sidecar_path,
    summarise_shards,
    update_summary,
    write_atomic,
    write_bytes,
    write_json,
    write_run_config,
    write_shard,
)
from ip2p.store.summary import summarised

__all__ = [
    "RunFolder",
    "Sidecar",
    "finished",
    "hold",
    "lock_file",
    "read_json",
    "read_json_or_empty",
    "read_sidecar",
    "read_summary",
    "sha256_of",
    "sidecar_path",
    "summarise_shards",
    "summarised",
    "update_summary",
    "write_atomic",
    "write_bytes",
    "write_json",
    "write_run_config",
    "write_shard",
]
