"""The checks of `__post_init__`: each raises ValueError with the rule, what was got and the way out."""

from __future__ import annotations


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
