"""Command lines to configs: a preset or a file, then flags over it. Nothing here imports torch or prefect."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from ip2p.config import PipelineConfig
from ip2p.config.files import read_config, read_run, suggest
from ip2p.presets import PRESETS

T = TypeVar("T")

SHORT_FORMS = {"runner": "runner.kind", "ray-address": "runner.address", "workers": "runner.max-workers"}
"""Flags that are asked for often."""

BOX = re.compile(r"[─│╭╮╰╯]+")


def take_option(words: list[str], name: str) -> str | None:
    """Removes `--name VALUE` or `--name=VALUE` from the words and returns the value."""
    flag = f"--{name}"
    for index, word in enumerate(words):
        if word.startswith(f"{flag}="):
            del words[index]
            return word.removeprefix(f"{flag}=")
        if word == flag:
            if index + 1 == len(words):
                raise ValueError(f"{flag} needs a value.")
            value = words[index + 1]
            del words[index : index + 2]
            return value
    return None


def take_whole(words: list[str], name: str) -> int | None:
    """Removes `--name N` from the words and returns the number. ValueError where it is none."""
    text = take_option(words, name)
    if text is None:
        return None
    plain = text.replace(",", "").replace("_", "")
    if not plain.isdigit() or int(plain) < 1:
        raise ValueError(f"--{name} takes a whole number from 1 on, got {text}.")
    return int(plain)


def take_run_folder(words: list[str], command: str) -> Path | None:
    """Removes the run folder, the first word, and returns it; None where only help is asked for."""
    if wants_help(words) and (not words or words[0].startswith("-")):
        return None
    if not words or words[0].startswith("-"):
        raise ValueError(f"`ip2p {command}` needs a run folder. Write: ip2p {command} RUN")
    return Path(words.pop(0))


def wants_help(words: Sequence[str]) -> bool:
    """Says whether help is asked for."""
    return "-h" in words or "--help" in words


def parse_new_run(words: list[str], command: str, *, options: str = "") -> PipelineConfig:
    """`[PRESET] [--config FILE] [--out X] [--stage.knob value …]` to a config."""
    for short, name in SHORT_FORMS.items():
        if (value := take_option(words, short)) is not None:
            words += [f"--{name}", value]
    file = take_option(words, "config")
    preset = words.pop(0) if words and not words[0].startswith("-") else None
    names = ", ".join(PRESETS)
    if preset is None and file is None and not wants_help(words):
        raise ValueError(f"`ip2p {command}` needs a preset or --config FILE. Presets: {names}.")
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"unknown preset {preset}. {suggest(preset, list(PRESETS))}")
    base = PRESETS[preset]() if preset else PipelineConfig()
    if file is not None:
        base = read_config(Path(file), base)
    form = f"ip2p {command} PRESET [--config FILE]{options} [--stage.knob VALUE …]"
    usage = f"{form}. Presets: {names}. A file is laid over the preset."
    return parse(PipelineConfig, words, prog=f"ip2p {command} {preset or 'PRESET'}", description=usage, default=base)


def parse_existing_run(words: list[str], command: str) -> PipelineConfig:
    """`RUN [--stage.knob value …]` to the config that the run was made with, changed by the flags."""
    folder = take_run_folder(words, command)
    base = read_run(folder) if folder else PipelineConfig()
    usage = f"ip2p {command} RUN [--stage.knob VALUE …]. Starts from RUN/config.json."
    config = parse(PipelineConfig, words, prog=f"ip2p {command} RUN", description=usage, default=base)
    if folder and config.out != folder:
        raise ValueError(f"--out is not for `ip2p {command}`, which works inside {folder}. Leave it out.")
    return config


def parse(kind: type[T], words: Sequence[str], *, prog: str, description: str, default: T | None = None) -> T:
    """Words to a dataclass with tyro; mistakes become a ValueError of one line."""
    base = tyro.MISSING_NONPROP if default is None else default
    with _errors_as_values():
        parsed, unknown = tyro.cli(
            kind, args=list(words), prog=prog, description=description, return_unknown_args=True, default=base
        )
    if unknown:
        raise ValueError(_describe_unknown(unknown[0], kind, default))
    return typing.cast(T, parsed)


@contextlib.contextmanager
def _errors_as_values() -> Iterator[None]:
    """Turns the box that tyro draws around a mistake into the message inside it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as end:
        if not end.code:
            raise
        raise ValueError(_message_in_box(said.getvalue())) from None


def _message_in_box(box: str) -> str:
    lines = []
    for line in box.splitlines()[1:]:
        if "───" in line:
            break
        lines.append(BOX.sub("", line).strip())
    message = " ".join(filter(None, lines)).removeprefix("Error parsing ")
    return message if message.endswith((".", "?")) else f"{message}."


def _describe_unknown(word: str, kind: type, default: object) -> str:
    if not word.startswith("-"):
        return f"{word!r} was not expected. Options are written --stage.knob VALUE."
    known = [f"--{name}" for name in _flags(default if default is not None else kind)]
    return f"unknown option {word}. {suggest(word.split('=')[0].replace('_', '-'), known)}"


def _flags(config: object, where: str = "") -> Iterator[str]:
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name, None)
        name = f"{where}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            yield from _flags(value, f"{name}.")
        else:
            yield name
