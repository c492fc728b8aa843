"""Configs from files: JSON or YAML laid over a base config, with errors that name the key and the nearest valid one."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ip2p.config import EvaluationConfig, PipelineConfig, to_dict
from ip2p.console import suggest

Config = TypeVar("Config")

NOT_SETTINGS = ("environment",)
"""Keys of a run's config.json that record what it ran with."""


def read_config(path: Path, base: PipelineConfig | None = None) -> PipelineConfig:
    """Lays the settings of a file over those of `base`. ValueError names an unknown key or a wrong value."""
    values = read_mapping(path)
    for name in NOT_SETTINGS:
        values.pop(name, None)
    try:
        return overlay(base or PipelineConfig(), values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_run(folder: Path) -> PipelineConfig:
    """Reads the config of a run folder, wherever it was moved to."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not a run folder: it has no config.json. Give the folder that a run printed at its end."
        )
    return dataclasses.replace(read_config(path), out=folder)


def read_run_data(folder: Path) -> str | None:
    """Returns the data that a run was trained on; None if that was its own dataset."""
    environment = read_mapping(folder / "config.json").get("environment")
    data = environment.get("data") if isinstance(environment, dict) else None
    return data if isinstance(data, str) else None


def evaluation_of(model: Path) -> EvaluationConfig:
    """Reads the evaluation settings of the run that a model's folder lies in; the defaults if it lies in none."""
    try:
        return read_config(model.resolve().parent / "config.json").evaluation
    except (OSError, ValueError):
        return EvaluationConfig()


def read_mapping(path: Path) -> dict[str, Any]:
    """Reads a JSON or YAML file of keys and values."""
    if not path.is_file():
        raise FileNotFoundError(
            f"config file {path} does not exist. Give a .json or .yaml file, such as a run's config.json."
        )
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        values = json.loads(text) if path.suffix.lower() == ".json" else _read_yaml(text)
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read: {' '.join(str(error).split())}. Correct it, or start from a run's config.json."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected keys and values, such as rendering: {{...}}.")
    return values


def _read_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def overlay(base: Config, values: Mapping[str, Any]) -> Config:
    """Returns a copy of a config dataclass with some fields taken from plain values.

    ValueError names the key that is unknown or has a wrong value.
    """
    plain = _merge(type(base), to_dict(base), values, "")
    try:
        return _validate(type(base), plain)
    except ValidationError as error:
        raise ValueError(_describe(error)) from error


def _validate(kind: type[Config], plain: dict[str, Any]) -> Config:
    """Reads plain values strictly, so that no bool passes for a number; YAML's `1e-4`, a text, still does."""
    adapter = _adapter(typing.cast(Any, kind))
    try:
        config: Config = adapter.validate_json(json.dumps(plain, default=str), strict=True)
    except ValidationError as error:
        numbers = [each for each in error.errors() if each["type"] == "float_type" and _is_number(each["input"])]
        if not numbers:
            raise
        for number in numbers:
            *path, last = number["loc"]
            _at(plain, path)[last] = float(number["input"])
        config = adapter.validate_json(json.dumps(plain, default=str), strict=True)
    return config


@functools.cache
def _adapter(kind: Any) -> Any:
    return TypeAdapter(kind)


def _at(values: Any, path: Sequence[int | str]) -> Any:
    return functools.reduce(lambda inner, key: inner[key], path, values)


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _merge(kind: Any, base: dict[str, Any], values: Any, where: str) -> dict[str, Any]:
    """Lays values over a config's plain values, section by section; pydantic has no near miss to suggest."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where.rstrip('.')} takes keys and values, got {values!r}.")
    hints = typing.get_type_hints(kind)
    merged = dict(base)
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"unknown key {where}{key}. {suggest(str(key), list(hints), where)}")
        entry = (typing.get_args(hints[key]) or [None])[-1]
        merged[key] = value
        if dataclasses.is_dataclass(hints[key]):
            merged[key] = _merge(hints[key], base[key], value, f"{where}{key}.")
        elif dataclasses.is_dataclass(entry) and isinstance(value, Mapping):
            merged[key] = {name: _merge(entry, {}, each, f"{where}{key}.{name}.") for name, each in value.items()}
    return merged


def _describe(error: ValidationError) -> str:
    """Says in a line what the first wrong value is, where it stands and what belongs there."""
    errors = error.errors()
    first = errors[0]
    kind, value, path = first["type"], first["input"], first["loc"]
    where = ".".join(map(str, path))
    if kind == "value_error":
        return f"{where}.{first['ctx']['error']}" if where else str(first["ctx"]["error"])
    if kind == "literal_error":
        choices = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        return f"{where} is {value!r}, expected one of: {choices}."
    if kind == "too_long":
        return f"{where} takes {first['ctx']['max_length']} values, got {len(value)}: {value!r}."
    if kind == "missing":  # an error for each value that a fixed list lacks
        lacking = sum(each["type"] == kind and each["loc"][:-1] == path[:-1] for each in errors)
        return f"{where.rpartition('.')[0]} takes {len(value) + lacking} values, got {len(value)}: {value!r}."
    name = kind.split("_")[0]
    wanted = {"tuple": "a list", "dict": "keys and values", "string": "text"}.get(name, name)
    return f"{where} takes {wanted}, got {value!r}."
