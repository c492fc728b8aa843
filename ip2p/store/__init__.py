"""What lies on disk: run folders, shards with sidecars, locks, journals and the mirror of an object store."""

from ip2p.store.locks import hold, lock_file
from ip2p.store.run import (
    RunFolder,
    describe_environment,
    read_environments,
    read_summary,
    summarise_shards,
    summarised,
    versions_of,
    write_run_config,
)
from ip2p.store.shards import (
    Sidecar,
    State,
    finished,
    read_json,
    read_json_or_empty,
    read_sidecar,
    sha256_of,
    sidecar_path,
    state_of,
    write_atomic,
    write_bytes,
    write_json,
    write_shard,
)

__all__ = [
    "RunFolder",
    "Sidecar",
    "State",
    "describe_environment",
    "finished",
    "hold",
    "lock_file",
    "read_environments",
    "read_json",
    "read_json_or_empty",
    "read_sidecar",
    "read_summary",
    "sha256_of",
    "sidecar_path",
    "state_of",
    "summarise_shards",
    "summarised",
    "versions_of",
    "write_atomic",
    "write_bytes",
    "write_json",
    "write_run_config",
    "write_shard",
]
