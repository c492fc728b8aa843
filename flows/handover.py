"""Hands configs of any size to Prefect, which refuses parameters of more than 512 KiB: a large one goes by path."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, State
from prefect.futures import PrefectFuture

from flows.ending import note_flow_run
from ip2p.store import write_json

MOST_BYTES = 500_000
"""Most that is handed over as values; Prefect refuses more than 524,288 bytes."""

P = ParamSpec("P")
R = TypeVar("R")


def fits(parameters: Mapping[str, object]) -> bool:
    """Returns True if Prefect takes these parameters, which are plain values."""
    return len(json.dumps(parameters).encode()) <= MOST_BYTES


class UseFlow(Flow[P, R]):
    """Flow of a config and further arguments. Prefect records a large config as the folder that has its config.json."""

    def serialize_parameters(self, parameters: dict[str, Any | PrefectFuture[Any] | State[Any]]) -> dict[str, Any]:
        """Returns what Prefect records; the flow itself gets the config, whatever its size."""
        plain = super().serialize_parameters(parameters)
        return plain if fits(plain) else plain | {"config": plain["config"]["out"]}

    def with_options(self, **options: Any) -> UseFlow[P, R]:
        """Returns a copy with other options; Prefect's own would not be of this class."""
        changed = copy.copy(self)
        vars(changed).update(vars(super().with_options(**options)))
        return changed


def use_flow(name: str, **options: Any) -> Callable[[Callable[P, R]], UseFlow[P, R]]:
    """Makes the flow of a use from a function; `options` are those of Prefect's `flow`."""
    return lambda function: UseFlow(function, name=name, on_running=[note_flow_run], **options)


def form_of_any_size(parameters: dict[str, Any], fields: Container[str], folder: Path) -> dict[str, Any]:
    """Returns the values of a deployment's form; settings that are too large for Prefect go to a file in `folder`.

    ValueError if the form has no field for a file.
    """
    if fits(parameters):
        return parameters
    if "config_file" not in fields:
        raise ValueError(
            f"settings of more than {MOST_BYTES:,} bytes need the field config_file, which ablate does not have. "
            "Name the other deployments, such as --deployment run,dataset."
        )
    path = folder / "settings.json"
    write_json(path, parameters["settings"])
    return parameters | {"settings": None, "config_file": str(path)}
