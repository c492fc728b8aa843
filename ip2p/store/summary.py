"""How a stage's entry writes its own part of a run's summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ip2p.store.shards import read_summary, update_summary

P = ParamSpec("P")


class HasFolder(Protocol):
    """A config, of which only the run folder counts here."""

    @property
    def out(self) -> Path:
        """The run folder."""


Config = TypeVar("Config", bound=HasFolder)
Figures = TypeVar("Figures", bound=Mapping[str, Any])
Entry = Callable[Concatenate[Config, P], Figures]


def summarised(stage: str, *, adds: bool = False) -> Callable[[Entry[Config, P, Figures]], Entry[Config, P, Figures]]:
    """Makes an entry write the figures that it returns to its stage's part of `summary.json`.

    They replace the part; an entry that `adds` keeps the figures that are there.
    """

    def decorate(entry: Entry[Config, P, Figures]) -> Entry[Config, P, Figures]:
        @wraps(entry)
        def write(config: Config, /, *args: P.args, **kwargs: P.kwargs) -> Figures:
            figures = entry(config, *args, **kwargs)
            before = read_summary(config.out).get(stage, {}) if adds else {}
            update_summary(config.out, stage, {**before, **figures})
            return figures

        return write

    return decorate
