"""Configs from files: JSON or YAML laid over a base config, with errors that name the key and the nearest valid one."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ip2p.config import EvaluationConfig, PipelineConfig

NOT_SETTINGS = ("environment",)
"""Keys of a run's config.json that say what it ran with."""


def read_config(path: Path, base: PipelineConfig | None = None) -> PipelineConfig:
    """The settings of a file over those of `base`. ValueError names the key that is unknown or has a wrong value."""
    values = read_mapping(path)
    for name in NOT_SETTINGS:
        values.pop(name, None)
    try:
        return typing.cast(PipelineConfig, overlay(base or PipelineConfig(), values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_run(folder: Path) -> PipelineConfig:
    """The config of a run folder, wherever it was moved to."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not a run folder: it has no config.json. Give the folder that a run printed at its end."
        )
    return dataclasses.replace(read_config(path), out=folder)


def read_run_data(folder: Path) -> str | None:
    """The data that the run of a folder was trained on, where that was not its own dataset."""
    found = read_mapping(folder / "config.json").get("environment")
    data = found.get("data") if isinstance(found, dict) else None
    return data if isinstance(data, str) else None


def evaluation_of(model: Path) -> EvaluationConfig:
    """The evaluation settings of the run that a model's folder lies in; the usual ones for a model of other origin."""
    try:
        return read_config(model.resolve().parent / "config.json").evaluation
    except (OSError, ValueError):
        return EvaluationConfig()


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a JSON or YAML file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"config file {path} does not exist. Give a .json or .yaml file, such as a run's config.json."
        )
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        values = json.loads(text) if path.suffix.lower() == ".json" else _read_yaml(text)
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read: {' '.join(str(error).split())}. Mend it or start from a run's config.json."
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


def overlay(base: Any, values: dict[str, Any], where: str = "") -> Any:
    """A copy of a config dataclass with some fields taken from plain values."""
    hints = typing.get_type_hints(type(base))
    known = [field.name for field in dataclasses.fields(base)]
    changes = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"unknown key {where}{key}. {suggest(str(key), known, where)}")
        changes[key] = _as_field(hints[key], value, getattr(base, key), f"{where}{key}")
    try:
        return dataclasses.replace(base, **changes)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error


def suggest(name: str, known: Sequence[str], where: str = "") -> str:
    """`Did you mean x?`, or the list where none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {where}{near[0]}?" if near else f"Known are: {', '.join(known)}."


def _as_field(hint: Any, value: Any, default: Any, where: str) -> Any:
    """The value as its field's type has it; lists become tuples, mappings become configs."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{where} takes keys and values, got {value!r}.")
        base = default if isinstance(default, typing.cast(type, hint)) else typing.cast(type, hint)()
        return overlay(base, value, f"{where}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _as_field(next(each for each in arguments if each is not type(None)), value, default, where)
    if origin is dict:
        return _as_dict(arguments[1], value, where)
    if origin is tuple:
        return _as_tuple(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{where} is {value!r}, expected one of: {', '.join(map(str, arguments))}.")
        return value
    return _as_scalar(hint, value, where)


def _as_dict(hint: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} takes keys and values, got {value!r}.")
    return {str(key): _as_field(hint, each, None, f"{where}.{key}") for key, each in value.items()}


def _as_tuple(hints: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} takes a list, got {value!r}.")
    many = hints[-1] is Ellipsis
    if not many and len(value) != len(hints):
        raise ValueError(f"{where} takes {len(hints)} values, got {len(value)}: {value!r}.")
    each_hint = [hints[0]] * len(value) if many else hints
    return tuple(_as_field(hint, each, None, where) for hint, each in zip(each_hint, value, strict=True))


def _as_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4 as text
        except ValueError:
            pass
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} takes {hint.__name__}, got {value!r}.")
    return value
