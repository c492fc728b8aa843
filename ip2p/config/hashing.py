"""Configs as plain values, and the hash of what decides a result."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ip2p.records import content_hash


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))  # type: ignore[no-any-return]


RESULT_FREE = {"device", "batch_size", "attention_backend", "out", "log_every", "checkpoints_total_limit"}
"""Fields that change how a stage runs but not what it makes."""


def fingerprint(*parts: Any) -> str:
    """Hash of what decides a result: configs without their `RESULT_FREE` fields, and the fingerprints they build on."""

    def plain(part: Any) -> Any:
        if not dataclasses.is_dataclass(part):
            return part
        return {key: value for key, value in to_dict(part).items() if key not in RESULT_FREE}

    return content_hash(*(json.dumps(plain(part), sort_keys=True, default=str) for part in parts))
