"""Parses a command's words with tyro: its own arguments, then every setting over a preset, a file or a run.

A command is a function of its arguments, a dataclass, and perhaps of a `PipelineConfig`. What that config starts from
depends on the arguments, so the words are parsed twice. Nothing here imports torch or prefect.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro import _errors  # private, but its only structured errors; hence the upper bound on tyro in pyproject.toml
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from ip2p.cli.arguments import OfRun, OverSettings
from ip2p.config import PipelineConfig, RunnerConfig
from ip2p.config.fields import describe_fields
from ip2p.config.files import overlay
from ip2p.console import suggest
from ip2p.store.mirror import is_url, working_copy

T = TypeVar("T")
S = TypeVar("S", bound=OverSettings)

HELP_WORDS = ("-h", "--help")
SHORT_FORMS = {"kind": "--runner", "address": "--ray-address", "max_workers": "--workers"}
"""Second names of the runner's flags."""
SWITCHES = ("--score", "--rejected")
"""Switches that needed the value `yes` once, and still take it."""
Stage = Literal["prompts", "rendering", "scoring", "filtering", "dataset", "training", "evaluation", "runner"]


@dataclasses.dataclass(frozen=True)
class MoreHelp:
    """Asks for more settings than the ones that people use most."""

    help_all: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show every setting."""
    help_stage: Stage | None = None
    """Show the settings of one stage."""


def call(action: Callable[..., None], words: Sequence[str], command: str) -> None:
    """Runs a command with what its words say. ValueError for a mistake in them; SystemExit after help."""
    kind, *settings = (hint for name, hint in typing.get_type_hints(action).items() if name != "return")
    about = (action.__doc__ or "").strip()
    words = [word.removesuffix("=yes") if word.startswith(SWITCHES) else word for word in words]
    words = [word for before, word in itertools.pairwise(["", *words]) if word != "yes" or before not in SWITCHES]
    with contextlib.ExitStack() as stack:
        if settings:
            _show_help_if_asked(kind, words, command, about)
            action(*parse_over_base(kind, words, command, stack))
        else:
            start = kind.start(words) if hasattr(kind, "start") else tyro.MISSING_NONPROP
            arguments, unknown = _read(kind, words, command, default=start, add_help=True, description=about)
            _refuse(unknown, flags_of(kind))
            local = _copy_run(arguments, stack)
            action(dataclasses.replace(arguments, run=local) if local else arguments)


def parse_over_base(
    kind: type[S], words: Sequence[str], command: str, stack: contextlib.ExitStack
) -> tuple[S, PipelineConfig]:
    """Parses arguments and settings over the base that the arguments name.

    The first pass knows no edit types of that base, so it may take the value of such a setting for a positional.
    """
    base = PipelineConfig()
    guess = _read_over(base, kind, words, command)[0].own
    if local := _copy_run(guess, stack):
        words = [local if word == guess.run else word for word in words]
        guess = dataclasses.replace(guess, run=local)
    with contextlib.suppress(ValueError, OSError):  # the guess may be wrong
        base = guess.base()
    parsed, unknown = _read_over(base, kind, words, command)
    flags = [*flags_of(kind), *flags_of(base), *SHORT_FORMS.values()]
    _refuse([word for word in unknown if word.startswith("-")], flags)
    parsed.own.check_base()
    base = parsed.own.base()
    _refuse(unknown, flags)
    config = overlay(base, parsed.settings)
    parsed.own.check(config)
    return parsed.own, config


@contextlib.contextmanager
def local_copy(place: str) -> Iterator[Path]:
    """Gives a run folder to work in: the place itself, or the local copy of a URL, which the store follows."""
    with working_copy(place) as local:
        yield local
    if is_url(place):
        print(f"  {'stored in':<11} {place}")


def flags_of(config: Any, prefix: str = "") -> list[str]:
    """Lists the flags of a dataclass or an instance, sections included, in their spelling on the command line."""
    is_type = isinstance(config, type)
    hints = typing.get_type_hints(config if is_type else type(config))
    flags: list[str] = []
    for field in dataclasses.fields(config):
        section = hints[field.name] if is_type else getattr(config, field.name)
        name = f"{prefix}{field.name.replace('_', '-')}"
        flags += flags_of(section, f"{name}.") if dataclasses.is_dataclass(section) else [f"--{name}"]
    return flags


def _read(
    kind: type[T], words: Sequence[str], command: str, *, add_help: bool = False, **options: Any
) -> tuple[T, list[str]]:
    """Parses what a dataclass knows and returns the other words too; mistakes become a ValueError of one line."""
    with _errors.on_parse_error(functools.partial(_raise, command)):
        parsed = tyro.cli(kind, args=words, prog=command, return_unknown_args=True, add_help=add_help, **options)
    return typing.cast(tuple[T, list[str]], parsed)


def _read_over(
    base: PipelineConfig, kind: type[OverSettings], words: Sequence[str], command: str
) -> tuple[Any, list[str]]:
    start = _with_settings(kind, base)
    return _read(type(start), words, command, default=start, registry=_plain_sections())


def _raise(command: str, event: _errors.ParseErrorEvent) -> None:
    """Says in a line what tyro refuses; kinds of mistakes that are not here are left to tyro."""
    match event:
        case _errors.MissingArgs():
            missing = event.missing_arguments[0].arg
            name = missing.lowered.metavar if missing.is_positional() else missing.display_name()
            text = missing.field.helptext
            raise ValueError(f"`{command}` needs {name}. {text() if callable(text) else text}")
        case _errors.InvalidChoice():
            flag, choices = event.argument.display_name(), ", ".join(event.choices)
            raise ValueError(f"invalid choice {event.value!r} for {flag}. Choose from: {choices}.")
        case _errors.BadValue():
            nargs = event.argument.lowered.nargs
            raise ValueError(f"{event.argument.display_name()} needs {'a value' if nargs == 1 else f'{nargs} values'}.")
        case _errors.InstantiationFailure():
            flag = f"{event.argument.display_name()}: " if event.argument else ""
            raise ValueError(f"{flag}{str(event.message).strip().removesuffix('.')}.")


def _refuse(unknown: Sequence[str], flags: Sequence[str]) -> None:
    if unknown and unknown[0].startswith("-"):
        name = unknown[0].split("=")[0].replace("_", "-")
        raise ValueError(f"unknown option {unknown[0]}. {suggest(name, flags)}")
    if unknown:
        raise ValueError(f"{unknown[0]!r} was not expected. Options are written --name VALUE.")


def _copy_run(arguments: object, stack: contextlib.ExitStack) -> str:
    """Returns the local folder of the run that a command works on; an empty text if it works on none."""
    return str(stack.enter_context(local_copy(arguments.run))) if isinstance(arguments, OfRun) else ""


def _with_settings(kind: type, base: PipelineConfig) -> Any:
    """Makes what tyro starts from: a command's own arguments, yet to be given, and the settings of a base."""
    fields = [("own", _own(kind)), ("settings", Annotated[PipelineConfig, tyro.conf.arg(name="")])]
    return dataclasses.make_dataclass("Words", fields)(tyro.MISSING_NONPROP, base)


def _own(kind: type) -> Any:
    """Takes a command's switches as `--score` alone; settings have `--no-…` too."""
    return Annotated[kind, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff]


def _plain_sections() -> ConstructorRegistry:
    """Reads the sections of a config as plain values, which `overlay` checks as it checks a file's."""
    registry = ConstructorRegistry()

    @registry.struct_rule
    def section(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not dataclasses.is_dataclass(info.default) or not info.type.__module__.startswith("ip2p.config"):
            return None
        fields = [
            StructFieldSpec(
                name=field.name, type=_hint(info.type, field.name), default=getattr(info.default, field.name)
            )
            for field in dataclasses.fields(info.type)
        ]
        return StructConstructorSpec(instantiate=dict, fields=tuple(fields))

    return registry


_hints = functools.cache(typing.get_type_hints)
"""Types of a section's settings, which tyro asks for time and again."""


def _hint(section: type, setting: str, **options: Any) -> Any:
    """Returns the type of a setting, with its flag's short form if it has one."""
    aliases = [SHORT_FORMS[setting]] if section is RunnerConfig and setting in SHORT_FORMS else None
    return Annotated[_hints(section)[setting], tyro.conf.arg(aliases=aliases, **options)]


def _show_help_if_asked(kind: type[OverSettings], words: Sequence[str], command: str, about: str) -> None:
    """Prints a command's own arguments with the settings that people use most, all of them or those of a stage."""
    more, rest = _read(MoreHelp, words, command)
    if more == MoreHelp() and set(HELP_WORDS).isdisjoint(rest):
        return
    base = PipelineConfig()
    with contextlib.suppress(ValueError, OSError):  # help is for those who do not know yet what to write
        guess, _ = _read_over(base, kind, [word for word in rest if word not in HELP_WORDS], command)
        base = guess.own.base()
    if more.help_stage:
        section = getattr(base, more.help_stage)
        start = dataclasses.make_dataclass("Part", [(more.help_stage, type(section))])(section)
    elif more.help_all:
        start = _with_settings(kind, base)
    else:
        start = _with_common(kind, base)
        about += f"\n\n--help-all shows all {len(flags_of(base))} settings, --help-stage those of one stage."
    tyro.cli(type(start), default=start, args=["--help"], prog=command, description=about)


def _with_common(kind: type[OverSettings], base: PipelineConfig) -> Any:
    """Makes what help shows first: a command's own arguments, the settings that people use most, and more help."""
    hints: dict[str, Any] = {"own": _own(kind)}
    values: dict[str, Any] = {"own": tyro.MISSING_NONPROP}
    for path in kind.common:
        *sections, setting = path.split(".")
        section: Any = functools.reduce(getattr, sections, base)
        stage: Any = type(section)
        about = {"name": path.replace("_", "-"), "help": describe_fields(stage)[setting]}
        name = path.replace(".", "_")
        hints[name], values[name] = _hint(stage, setting, **about), getattr(section, setting)
    hints["more"] = Annotated[MoreHelp, tyro.conf.arg(name="")]
    return dataclasses.make_dataclass("Words", hints.items())(**values, more=MoreHelp())
