"""Arguments that commands share: a preset or a file to start from, or the run to work on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from ip2p.config import PipelineConfig
from ip2p.console import suggest
from ip2p.presets import PRESETS


def _read_whole(words: list[str]) -> int:
    digits = words[0].replace(",", "").replace("_", "")
    if not digits.isdigit() or int(digits) < 1:
        raise ValueError(f"takes a whole number from 1 on, got {words[0]}.")
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


class OverSettings:
    """Arguments of a command that takes every setting as a flag, laid over a base that the arguments name."""

    common: ClassVar[tuple[str, ...]] = (
        "out",
        "prompts.captions",
        "prompts.num_captions",
        "rendering.num_inference_steps",
        "rendering.num_candidates",
        "training.train_batch_size",
        "training.learning_rate",
        "training.max_train_steps",
        "runner.kind",
        "runner.max_workers",
    )
    """Settings that help shows first."""

    def base(self) -> PipelineConfig:
        """Returns the config that the flags are laid over; the defaults if the arguments do not name a valid one."""
        raise NotImplementedError

    def check(self, command: str) -> None:
        """Raises ValueError if the arguments do not name a valid base."""

    def check_settings(self, command: str, config: PipelineConfig) -> None:
        """Raises ValueError if the command cannot work with the settings."""


@dataclass(frozen=True, kw_only=True)
class NewRun(OverSettings):
    """Arguments of a command that starts from a preset, a file or both."""

    preset: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PRESET", help=f"Settings to start from: {', '.join(PRESETS)}."),
    ] = None
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A .json or .yaml file laid over the preset, such as an earlier run's config.json."""

    def base(self) -> PipelineConfig:
        """Returns the preset with the file laid over it."""
        from ip2p.config.files import read_config

        base = PRESETS[self.preset]() if self.preset in PRESETS else PipelineConfig()
        return read_config(self.config.expanduser(), base) if self.config else base

    def check(self, command: str) -> None:
        """Requires a known preset or a file."""
        if self.preset is None and self.config is None:
            raise ValueError(f"`{command}` needs a preset or --config FILE. Presets: {', '.join(PRESETS)}.")
        self.check_preset()

    def check_preset(self) -> None:
        """Requires the preset, if one is named, to exist."""
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
        from ip2p.config.files import read_run

        return read_run(self.folder) if (self.folder / "config.json").is_file() else PipelineConfig()

    def check(self, command: str) -> None:
        """Requires a run folder."""
        from ip2p.config.files import read_run

        read_run(self.folder)

    def check_settings(self, command: str, config: PipelineConfig) -> None:
        """Refuses to work in another folder than the run's."""
        if config.out != self.folder:
            raise ValueError(f"--out is not for `{command}`, which works inside {self.folder}. Leave it out.")
