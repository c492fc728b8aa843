"""The checks of `__post_init__`: each raises ValueError with the rule, what was got and the way out."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ip2p.records import content_hash


def check(rule: bool, message: str) -> None:
    """The rule, or its message."""
    if not rule:
        raise ValueError(message)


def check_positive(config: object, *names: str) -> None:
    """Fields that are set are above zero."""
    for name in names:
        value = getattr(config, name)
        check(value is None or value > 0, f"{name} must be positive, got {value}. Set it to 1 or more.")


def check_range(name: str, bounds: tuple[float, float]) -> None:
    """(low, high) in that order."""
    low, high = bounds
    check(low <= high, f"{name} is a range (low, high), got {bounds}. Give the lower bound first.")


def check_unit(name: str, *values: float) -> None:
    """Values in [0, 1]."""
    for value in values:
        check(0 <= value <= 1, f"{name} must lie in [0, 1], got {value}.")


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
