"""Parses a command's words with tyro: its own arguments, then every setting over a preset, a file or a run.

A command is a function of its arguments, a dataclass, and perhaps of a `PipelineConfig`. What that config starts from
depends on the arguments, so they are parsed first. Nothing here imports torch or prefect.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro import _errors  # its only structured errors; the lock pins it
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from ip2p.cli.arguments import OfRun, OverSettings
from ip2p.config import PipelineConfig, RunnerConfig
from ip2p.config.fields import describe_fields
from ip2p.console import suggest
from ip2p.store.mirror import is_url, working_copy

T = TypeVar("T")

HELP_WORDS = ("-h", "--help")
SHORT_FORMS = {"kind": "--runner", "address": "--ray-address", "max_workers": "--workers"}
"""Second names of the runner's flags."""
IGNORED = "yes"
"""Value that `--score` and `--rejected` took before they were switches."""
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
    more, rest = _read(MoreHelp, words, command) if settings else (MoreHelp(), list(words))
    if more != MoreHelp() or not set(HELP_WORDS).isdisjoint(rest):
        _show_help(action, kind, rest, command, more, bool(settings))
    with contextlib.ExitStack() as stack:
        if settings:
            arguments, config = parse_over_base(kind, rest, command, stack)
            action(arguments, config)
        else:
            action(_at_hand(parse(kind, rest, command), stack, {}))


def parse(kind: type[T], words: Sequence[str], command: str) -> T:
    """Parses the arguments of a command without settings."""
    arguments, unknown = _read(kind, words, command, default=getattr(kind, "start", lambda _: None)(words))
    _refuse(unknown, flags_of(kind))
    return arguments


def parse_over_base(
    kind: type[Any], words: Sequence[str], command: str, stack: contextlib.ExitStack
) -> tuple[Any, PipelineConfig]:
    """Parses arguments and settings over the base that the arguments name.

    The first guess of the arguments knows no settings, so it may take a setting's value for a positional. A guess is
    right once parsing over its base gives the same arguments.
    """
    from ip2p.config.files import overlay

    both = _with_settings(kind)
    copies: dict[str, str] = {}
    guess, _ = _read(kind, words, command)
    for _ in range(3):
        guess = _at_hand(guess, stack, copies)
        base = guess.base()
        start = both(own=tyro.MISSING_NONPROP, settings=base)
        parsed, unknown = _read(both, words, command, default=start, registry=_plain_sections(), names=kind)
        again = _at_hand(parsed.own, stack, copies)
        if again == guess:
            break
        guess = again
    guess.check(command)
    _refuse(unknown, [*flags_of(kind), *flags_of(base), *SHORT_FORMS.values()])
    config = overlay(base, parsed.settings)
    guess.check_settings(command, config)
    return guess, config


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
    kind: type[T], words: Sequence[str], command: str, *, default: Any = None, names: Any = None, **options: Any
) -> tuple[T, list[str]]:
    """Parses what a dataclass knows and returns the other words too; mistakes become a ValueError of one line."""
    start = tyro.MISSING_NONPROP if default is None else default
    with _errors.on_parse_error(functools.partial(_raise, names or kind, command)):
        parsed = tyro.cli(
            kind, args=list(words), prog=command, default=start, return_unknown_args=True, add_help=False, **options
        )
    return typing.cast(tuple[T, list[str]], parsed)


def _raise(kind: type, command: str, event: _errors.ParseErrorEvent) -> None:
    """Says in a line what tyro refuses; kinds of mistakes that are not here are left to tyro."""
    match event:
        case _errors.MissingArgs():
            missing = event.missing_arguments[0].arg
            name = missing.lowered.metavar if missing.is_positional() else missing.display_name()
            text = describe_fields(kind).get(missing.field.intern_name.rpartition(".")[2], "")
            raise ValueError(f"`{command}` needs {name}. {text}")
        case _errors.InvalidChoice():
            flag, choices = event.argument.display_name(), ", ".join(event.choices)
            raise ValueError(f"invalid choice {event.value!r} for {flag}. Choose from: {choices}.")
        case _errors.BadValue():
            nargs = event.argument.lowered.nargs
            raise ValueError(f"{event.argument.display_name()} needs {'a value' if nargs == 1 else f'{nargs} values'}.")
        case _errors.InstantiationFailure():
            flag = event.argument.display_name() if event.argument else ""
            message = str(event.message).strip()
            between = "" if not flag else " " if message.startswith("takes") else ": "
            raise ValueError(f"{flag}{between}{message}{'' if message.endswith('.') else '.'}")


def _refuse(unknown: Sequence[str], flags: Sequence[str]) -> None:
    for word in unknown:
        if word.startswith("-"):
            raise ValueError(f"unknown option {word}. {suggest(word.split('=')[0].replace('_', '-'), flags)}")
        if word != IGNORED or not {"--score", "--rejected"} & set(flags):
            raise ValueError(f"{word!r} was not expected. Options are written --name VALUE.")


def _at_hand(arguments: T, stack: contextlib.ExitStack, copies: dict[str, str]) -> T:
    """Replaces the URL of a run that a command works on by its local copy."""
    if not isinstance(arguments, OfRun) or not is_url(arguments.run):
        return arguments
    if arguments.run not in copies:
        copies[arguments.run] = str(stack.enter_context(local_copy(arguments.run)))
    return dataclasses.replace(arguments, run=copies[arguments.run])


def _with_settings(kind: type) -> type[Any]:
    return dataclasses.make_dataclass("Words", [("own", _own(kind)), ("settings", _unprefixed(PipelineConfig))])


def _unprefixed(kind: Any) -> Any:
    return Annotated[kind, tyro.conf.arg(name="")]


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
        hints = typing.get_type_hints(info.type)
        aliases = SHORT_FORMS if info.type is RunnerConfig else {}
        fields = [
            StructFieldSpec(
                name=field.name,
                type=_named(hints[field.name], aliases.get(field.name)),
                default=getattr(info.default, field.name),
            )
            for field in dataclasses.fields(info.type)
        ]
        return StructConstructorSpec(instantiate=dict, fields=tuple(fields))

    return registry


def _named(hint: Any, alias: str | None) -> Any:
    return Annotated[hint, tyro.conf.arg(aliases=[alias])] if alias else hint


def _show_help(
    action: Callable[..., None], kind: type[Any], words: list[str], command: str, more: MoreHelp, settings: bool
) -> typing.NoReturn:
    """Prints help and ends with exit code 0."""
    about = (action.__doc__ or "").strip()
    options: dict[str, Any] = {"prog": command, "args": ["--help"], "description": about}
    if not settings:
        tyro.cli(kind, default=getattr(kind, "start", lambda _: tyro.MISSING_NONPROP)(words), **options)
    base = PipelineConfig()
    with contextlib.suppress(ValueError, OSError):  # help is for those who do not know yet what to write
        guess, _ = _read(kind, [word for word in words if word not in HELP_WORDS], command)
        base = guess.base()
    if more.help_stage:
        section = getattr(base, more.help_stage)
        part = dataclasses.make_dataclass("Part", [(more.help_stage, type(section), section)])
        tyro.cli(part, **options)
    if more.help_all:
        both = _with_settings(kind)
        tyro.cli(both, default=both(own=tyro.MISSING_NONPROP, settings=base), **options)
    num = len(flags_of(base))
    options["description"] = f"{about}\n\n--help-all shows all {num} settings, --help-stage those of one stage."
    tyro.cli(_overview(kind, base), **options)
    raise SystemExit(0)


def _overview(kind: type[OverSettings], base: PipelineConfig) -> type[Any]:
    """Builds a type with a command's own arguments, the settings that people use most, and the ways to see more."""
    fields: list[Any] = []
    for path in kind.common:
        *sections, name = path.split(".")
        section: Any = functools.reduce(getattr, sections, base)
        stage: Any = type(section)
        flag, text = path.replace("_", "-"), describe_fields(stage)[name]
        aliases = [SHORT_FORMS[name]] if isinstance(section, RunnerConfig) and name in SHORT_FORMS else None
        about = tyro.conf.arg(name=flag, help=text, aliases=aliases)
        hint: Any = Annotated[typing.get_type_hints(stage)[name], about]
        fields.append((path.replace(".", "_"), hint, dataclasses.field(default=getattr(section, name))))
    common = dataclasses.make_dataclass("Common", fields)
    parts = [("own", _own(kind)), ("common", _unprefixed(common)), ("more", _unprefixed(MoreHelp))]
    return dataclasses.make_dataclass("Words", parts)
