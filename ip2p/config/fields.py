"""What a field is allowed to hold, what it does to a result, and the text under it that help, forms and docs show.

Checks are called from `__post_init__`; each raises ValueError with the rule, what was got and the way out.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ip2p.records import content_hash

RESULT_FREE: Mapping[str, str] = {"free": "result"}
"""Metadata of a field that changes how a stage runs but not what it makes: it enters no fingerprint."""
ANSWERS_FREE: Mapping[str, str] = {"free": "answers"}
"""Metadata of a field of the prompts that does not enter the answers' fingerprint.

It acts through the captions, whose content enters, or on how answers are fetched.
"""
WEIGHTS_FREE: Mapping[str, str] = {"free": "weights"}
"""Metadata of a field of the training that does not enter the weights' fingerprint.

It acts beside the optimizer, such as a validation, or names a model whose content enters.
"""


def check(rule: bool, message: str) -> None:
    """Raises the message unless the rule holds."""
    if not rule:
        raise ValueError(message)


def check_positive(config: object, *names: str) -> None:
    """Requires the fields that are set to be above zero."""
    for name in names:
        value = getattr(config, name)
        check(value is None or value > 0, f"{name} must be positive, got {value}. Set it to 1 or more.")


def check_not_negative(config: object, *names: str) -> None:
    """Requires the fields that are set to be zero or above."""
    for name in names:
        value = getattr(config, name)
        check(value is None or value >= 0, f"{name} must not be negative, got {value}. Set it to 0 or more.")


def check_range(name: str, bounds: tuple[float, float]) -> None:
    """Requires (low, high) in that order."""
    low, high = bounds
    check(low <= high, f"{name} is a range (low, high), got {bounds}. Give the lower bound first.")


def check_unit(name: str, *values: float | None) -> None:
    """Requires the values that are set to lie in [0, 1]."""
    for value in values:
        check(value is None or 0 <= value <= 1, f"{name} must lie in [0, 1], got {value}. Give a fraction.")


def check_share(name: str, *values: float | None) -> None:
    """Requires the values that are set to lie in (0, 1]."""
    for value in values:
        check(value is None or 0 < value <= 1, f"{name} must lie above 0 and up to 1, got {value}. Give a fraction.")


OMIT_IF_EMPTY = {"omit_if_empty": True}
"""Metadata of a field that came later: while it has its default, saved configs and fingerprints are as before it."""


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config as plain JSON values."""
    return json.loads(json.dumps(_plain(config), default=str))  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    """Turns dataclasses into dicts, however deep they lie."""
    if dataclasses.is_dataclass(value):
        items = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {field.name: _plain(item) for field, item in items if not _is_omitted(field, item)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _is_omitted(field: dataclasses.Field[Any], value: Any) -> bool:
    return "omit_if_empty" in field.metadata and value == default_of(field)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Returns a field's default; MISSING if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def names_with(kind: type, *marks: Mapping[str, object]) -> frozenset[str]:
    """Returns the names of a dataclass's fields that carry one of the metadata marks."""
    fields = dataclasses.fields(kind)
    return frozenset(field.name for field in fields if any(mark.items() <= field.metadata.items() for mark in marks))


def fingerprint(*parts: Any) -> str:
    """Hashes what decides a result: configs without their `RESULT_FREE` fields, and the fingerprints they build on."""

    def plain(part: Any) -> Any:
        if not dataclasses.is_dataclass(part) or isinstance(part, type):
            return part
        free = names_with(type(part), RESULT_FREE)
        return {key: value for key, value in to_dict(part).items() if key not in free}

    return content_hash(*(json.dumps(plain(part), sort_keys=True, default=str) for part in parts))


@lru_cache
def describe_fields(kind: type) -> Mapping[str, str]:
    """Returns the text under each field of a dataclass, inherited fields included.

    A `RESULT_FREE` field's text says so; a section without a text of its own has its class's.
    """
    texts: dict[str, str] = {}
    for owner in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        tree = ast.parse(inspect.cleandoc(inspect.getsource(owner))).body[0]
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for statement, below in zip(body, body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
                texts[ast.unparse(statement.target)] = inspect.cleandoc(ast.literal_eval(below.value))
    for name in names_with(kind, RESULT_FREE) & texts.keys():
        texts[name] += " Does not change the result."
    return texts
