"""The knobs of a config as a form: every one may be left empty, and what is filled in goes over a preset.

A form is made from the dataclasses, with their types and the lines under their fields. Nothing here imports prefect,
which must not be imported before its server has an address.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic_core import to_jsonable_python

from ip2p.config import PipelineConfig
from ip2p.config.fields import describe_fields
from ip2p.config.files import overlay


@lru_cache
def form_of(kind: type, name: str = "", without: tuple[str, ...] = ()) -> type[BaseModel]:
    """Makes a model in which every field of a dataclass may be left empty; unknown ones are refused."""
    hints, texts = typing.get_type_hints(kind), describe_fields(kind)
    fields: dict[str, Any] = {
        field.name: (
            _optional(hints[field.name]),
            Field(default=None, description=texts.get(field.name) or inspect.getdoc(hints[field.name])),
        )
        for field in dataclasses.fields(kind)
        if field.name not in without
    }
    title = name or kind.__name__.removesuffix("Config")
    return create_model(title, __config__=ConfigDict(extra="forbid"), __doc__=inspect.getdoc(kind), **fields)


def fill_in(base: PipelineConfig, form: BaseModel | None) -> PipelineConfig:
    """Lays the form over the config, but for its empty fields. ValueError with the knob's name for a wrong value."""
    values = form.model_dump(mode="json", exclude_none=True) if form is not None else {}
    return overlay(base, values)


def differences(config: Any, base: Any) -> dict[str, Any]:
    """Returns what a form must hold to turn the base into the config. ValueError for a knob that is to become empty."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, before = getattr(config, field.name), getattr(base, field.name)
        if value == before or field.name == "out":
            continue
        if value is None:
            raise ValueError(f"{field.name} is set in the preset and cannot be emptied in a form. Leave it as it is.")
        is_section = dataclasses.is_dataclass(value) and dataclasses.is_dataclass(before)
        values[field.name] = differences(value, before) if is_section else to_jsonable_python(value)
    return values


def _optional(hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return form_of(typing.cast(type, hint)) | None
    if typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1]):
        return dict[str, form_of(typing.get_args(hint)[1])] | None  # type: ignore[misc]
    if isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint):
        return hint
    return (str if hint is Path else hint) | None
