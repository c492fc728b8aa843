"""Configs from files: JSON or YAML laid over a base config, with errors that name the key and the nearest valid one."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from ip2p.config import EvaluationConfig, PipelineConfig, to_dict
from ip2p.config.fields import OMIT_IF_EMPTY, names_with
from ip2p.console import suggest

Config = TypeVar("Config")


class _Yaml(yaml.SafeLoader):
    """Reads `1e-4` as a number, as YAML 1.2 does."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_config(path: Path, base: PipelineConfig | None = None) -> PipelineConfig:
    """Lays the settings of a file over those of `base`. ValueError names an unknown key or a wrong value."""
    values = read_mapping(path)
    values.pop("environment", None)  # a run's config.json records there what it ran with
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
        advice = "Give a .json or .yaml file, such as a run's config.json."
        raise FileNotFoundError(f"config file {path} does not exist. {advice}")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        values = json.loads(text) if path.suffix.lower() == ".json" else yaml.load(text, _Yaml) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} cannot be read: {' '.join(str(error).split())}. Correct it, or start from a run's config.json."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected keys and values, such as rendering: {{...}}.")
    return values


def overlay(base: Config, values: Mapping[str, Any]) -> Config:
    """Returns a copy of a config dataclass with some fields taken from plain values.

    ValueError names the key that is unknown or has a wrong value.
    """
    kind: Any = type(base)
    plain = json.dumps(_merge(kind, to_dict(base), values, ""), default=str)
    try:
        config: Config = adapter_of(kind).validate_json(plain, strict=True)  # so that no bool passes for a number
    except ValidationError as error:
        raise ValueError(_describe(error)) from error
    return config


adapter_of = functools.cache(TypeAdapter)
"""Building a validator takes longer than using it."""


def _merge(kind: Any, base: dict[str, Any], values: Any, where: str) -> dict[str, Any]:
    """Lays values over a config's plain values, section by section; pydantic has no near miss to suggest.

    A section that was saved whole leaves out what it does not use (`OMIT_IF_EMPTY`): that is not taken from below it.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where.rstrip('.')} takes keys and values, got {values!r}.")
    hints = typing.get_type_hints(kind)
    is_whole = hints.keys() - names_with(kind, OMIT_IF_EMPTY) <= values.keys()
    merged = {} if is_whole else dict(base)
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"unknown key {where}{key}. {suggest(str(key), list(hints), where)}")
        entry = (typing.get_args(hints[key]) or [None])[-1]
        merged[key] = value
        if dataclasses.is_dataclass(hints[key]):
            merged[key] = _merge(hints[key], base.get(key, {}), value, f"{where}{key}.")
        elif dataclasses.is_dataclass(entry) and isinstance(value, Mapping):
            merged[key] = {name: _merge(entry, {}, inner, f"{where}{key}.{name}.") for name, inner in value.items()}
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
        lacking = sum(other["type"] == kind and other["loc"][:-1] == path[:-1] for other in errors)
        return f"{where.rpartition('.')[0]} takes {len(value) + lacking} values, got {len(value)}: {value!r}."
    name = kind.split("_")[0]
    expected = {"tuple": "a list", "dict": "keys and values", "string": "text"}.get(name, name)
    return f"{where} takes {expected}, got {value!r}."
