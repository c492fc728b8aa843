"""Arguments that commands share: a preset or a file to start from, or the run to work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from ip2p.config import PipelineConfig
from ip2p.config.files import read_config, read_run
from ip2p.console import suggest
from ip2p.presets import PRESETS


def _read_whole(words: list[str]) -> int:
    digits = words[0].replace(",", "").replace("_", "")
    if not digits.isdigit() or int(digits) < 1:
        raise ValueError(f"expected a whole number from 1 on, got {words[0]}.")
    return int(digits)


Whole = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="N",
        instance_from_str=_read_whole,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""A count, which may be written 450,000 or 450_000."""

Columns = Annotated[str | None, tyro.conf.arg(metavar="OURS=THEIRS,…")]
"""Names of a source's columns, for `read_columns`."""

Preset = Annotated[
    str | None,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="PRESET", help=f"Settings to start from: {', '.join(PRESETS)}."),
]


def read_columns(text: str | None, needed: Sequence[str], optional: Sequence[str]) -> dict[str, str] | None:
    """Reads `edit_prompt=a,edit_type=b`. ValueError if a needed column is missing or a part is malformed or unknown."""
    if text is None:
        return None
    parts = [part.partition("=") for part in text.split(",")]
    columns = {ours: theirs for ours, _, theirs in parts}
    if not all(equals for _, equals, _ in parts) or not set(needed) <= columns.keys() <= {*needed, *optional}:
        names = f"{', '.join(needed)} and optionally {', '.join(optional)}"
        raise ValueError(f"--columns takes ours=theirs,… with {names}; got {text}.")
    return columns


def in_section(section: str, *names: str) -> tuple[str, ...]:
    """Returns the paths of settings of one section."""
    return tuple(f"{section}.{name}" for name in names)


class OverSettings:
    """Arguments of a command that takes every setting as a flag, laid over a base that the arguments name."""

    common: ClassVar[tuple[str, ...]] = (
        "out",
        *in_section("prompts", "captions", "num_captions"),
        *in_section("rendering", "num_inference_steps", "num_candidates"),
        *in_section("training", "train_batch_size", "learning_rate", "max_train_steps"),
        *in_section("runner", "kind", "max_workers"),
    )
    """Settings that help shows first."""

    def base(self) -> PipelineConfig:
        """Returns the config that the flags are laid over; an unknown preset counts as none."""
        raise NotImplementedError

    def check_base(self) -> None:
        """Raises ValueError if the arguments do not name a valid base."""

    def check(self, config: PipelineConfig) -> None:
        """Raises ValueError if the command cannot work with the settings."""


@dataclass(frozen=True, kw_only=True)
class NewRun(OverSettings):
    """Arguments of a command that starts from a preset, a file or both."""

    is_optional: ClassVar[bool] = False
    """Whether the command works without a preset or a file."""
    preset: Preset = None
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A .json or .yaml file laid over the preset, such as an earlier run's config.json."""

    def base(self) -> PipelineConfig:
        """Returns the preset with the file laid over it."""
        base = PRESETS[self.preset]() if self.preset in PRESETS else PipelineConfig()
        return read_config(self.config.expanduser(), base) if self.config else base

    def check_base(self) -> None:
        """Requires a preset that exists or a file."""
        if self.preset is None and self.config is None and not self.is_optional:
            raise ValueError(f"this command needs a preset or --config FILE. Presets: {', '.join(PRESETS)}.")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset}. {suggest(self.preset, list(PRESETS))}")


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """Arguments of a command that works on a run."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder, or its URL."""

    @property
    def folder(self) -> Path:
        """Returns the run folder."""
        return Path(self.run)


@dataclass(frozen=True, kw_only=True)
class ExistingRun(OfRun, OverSettings):
    """Arguments of a command that starts from a run's config.json."""

    def base(self) -> PipelineConfig:
        """Returns the config that the run was made with."""
        return read_run(self.folder)

    def check(self, config: PipelineConfig) -> None:
        """Refuses to work in another folder than the run's."""
        if config.out != self.folder:
            raise ValueError(f"--out is not for a command that works inside {self.folder}. Leave it out.")
