"""Every use as a deployment: a form on Prefect's page with all knobs, and the run that it starts.

The fields of a form come from the table of uses, its knobs from the config's dataclasses.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import signal
import tempfile
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import Flow, State, flow
from prefect.client.schemas.schedules import CronSchedule
from prefect.runner import Runner
from prefect.schedules import Cron, Schedule
from prefect.settings import PREFECT_UI_URL
from prefect.states import Completed, Failed
from prefect.types.entrypoint import EntrypointType
from pydantic import BaseModel

from flows.forms import fill_in, form_of
from flows.handover import form_of_any_size
from flows.runners import flow_of
from ip2p import console
from ip2p.config import PipelineConfig
from ip2p.config.files import read_config
from ip2p.console import one_line
from ip2p.presets import PRESETS
from ip2p.store.mirror import working_copy
from ip2p.uses import USES, Use, carry_out

logger = logging.getLogger("ip2p.deployments")

if TYPE_CHECKING:
    Form = BaseModel
else:
    Form = form_of(PipelineConfig, name="Settings", without=("out",))

ABOUT = {
    "preset": "Settings to start from.",
    "out": "Run folder: where everything goes, on the machine that serves, or a URL such as s3://bucket/run. Default: "
    "the preset's. A folder that holds a run is resumed.",
    "config_file": "A run's config.json, or a YAML file, on the machine that serves: laid over the preset. "
    "Settings of more than half a megabyte must come from here.",
    "settings": "Single knobs, over preset and file. What is left empty stays as it was.",
}
"""Texts under the fields that all forms share; a use's arguments have texts of their own."""


def make_deployment(use: Use) -> Flow[..., Any]:
    """Builds the flow behind the form of a use; its end, good or bad, is a state with a message."""
    signature = inspect.Signature(list(_parameters(use)), return_annotation=State[Any])

    def start(**values: object) -> State[Any]:
        bound = signature.bind(**values)
        bound.apply_defaults()
        return _in_one_line(lambda: _carry_out(use, bound.arguments))

    texts = ABOUT | {argument.name: argument.help for argument in use.arguments}
    lines = [f"    {name}: {texts[name]}" for name in signature.parameters]
    start.__name__ = start.__qualname__ = use.command
    start.__doc__ = "\n".join([use.title, "", "Args:", *lines])
    start.__signature__ = signature  # type: ignore[attr-defined]
    return flow(name=f"ip2p {use.command}", description=use.title)(start)


def _parameters(use: Use) -> Iterator[inspect.Parameter]:
    """Yields the fields of the form; Prefect reads types and defaults off them."""

    def field(name: str, kind: object, default: object = inspect.Parameter.empty) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)

    starts_from_preset = use.from_run is None
    yield from (field(argument.name, str) for argument in use.arguments if not argument.choices)
    if starts_from_preset:
        yield field("preset", one_of(PRESETS), next(iter(PRESETS)))
    yield field("out", str, "")
    if starts_from_preset:
        yield field("config_file", str, "")
    for argument in use.arguments:
        if argument.choices:
            yield field(argument.name, list[one_of(argument.choices)], list(argument.choices))  # type: ignore[misc]
    yield field("settings", Form | None, None)


def one_of(names: Iterable[str]) -> Any:
    """Returns the type of a field that takes one of these names."""
    return typing.Literal.__getitem__(tuple(names))


DEPLOYMENTS = {use.command: make_deployment(use) for use in USES.values()}
"""Deployments by the command that does the same."""
globals().update(DEPLOYMENTS)  # Prefect loads a deployment's flow as an attribute of this module


def _carry_out(use: Use, values: Mapping[str, Any]) -> str:
    """Carries out a use as its form was filled in; returns the message of its end."""
    arguments = {argument.name: argument.parse(values[argument.name]) for argument in use.arguments}
    base = use.from_run(arguments["run"]) if use.from_run else PRESETS[values["preset"]]()
    if file := values.get("config_file"):
        base = read_config(Path(file).expanduser(), base)
    config = fill_in(base, values["settings"])
    out = values["out"] or str(config.out)
    with working_copy(out) as folder:
        config = dataclasses.replace(config, out=folder)
        is_new = carry_out(config, use.name, lambda: flow_of(use.name, config.runner)(config, **arguments), **arguments)
    return f"The results are in {out}." if is_new else f"Everything is done already in {out}."


def _in_one_line(work: Callable[[], str]) -> State[Any]:
    """Does the work; its message, or the line that the command would print for an error, becomes a state's."""
    console.start_logging()
    try:
        return Completed(message=work())
    except Exception as error:
        path = console.log_failure(error)
        where = f" The log is {path}." if path and not isinstance(error, ValueError) else ""
        line = one_line(error) + where
        logger.error("%s", line)
        return Failed(message=line)


SECONDS_BETWEEN_LOOKS = 3.0
"""Interval at which the runner asks for new runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What is offered on Prefect's page, and how."""

    names: Sequence[str]
    parameters: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Values that the forms are filled in with, and that scheduled runs get."""
    cron: str | None = None
    timezone: str = "UTC"
    limit: int = 1
    """Runs at a time; the others wait."""


def offer_deployments(offer: Offer, ready: Callable[[str], object]) -> None:
    """Registers the deployments and works until it is interrupted; then their schedules pause and its runs end.

    `ready` is called with the address of Prefect's page once they are registered and an interrupt is heeded.

    ValueError for a schedule that is not valid.
    """
    schedule = _schedule(offer)
    logging.getLogger("prefect.runner").setLevel(logging.ERROR)  # it warns every few seconds of runs that wait
    runner = Runner(name="ip2p", limit=offer.limit, query_seconds=SECONDS_BETWEEN_LOOKS)
    with tempfile.TemporaryDirectory(prefix="ip2p-settings-") as folder:
        for name in offer.names:
            flow = DEPLOYMENTS[name]
            deployment: Any = flow.to_deployment(
                name,
                schedule=schedule,
                parameters=_parameters_of(name, offer.parameters, Path(folder)),
                description=flow.description,
                tags=["ip2p"],
                paused=False,
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
            runner.add_deployment(deployment)
        asyncio.run(_work_until_interrupted(runner, lambda: ready(PREFECT_UI_URL.value() or "")))


async def _work_until_interrupted(runner: Runner, ready: Callable[[], object]) -> None:
    """Ends on Ctrl-C and on SIGTERM by cancelling, so that the runner puts everything in order on its way out.

    `ready` is called once that holds: `asyncio.run` loses a Ctrl-C that arrives while it starts.
    """
    working, loop = asyncio.ensure_future(runner.start()), asyncio.get_running_loop()
    await asyncio.sleep(0)  # the runner sets a handler of its own as it starts, which raises in the middle of anything
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, working.cancel)
    ready()
    with contextlib.suppress(asyncio.CancelledError):
        await working


def _schedule(offer: Offer) -> Schedule | None:
    if offer.cron is None:
        return None
    try:
        CronSchedule(cron=offer.cron, timezone=offer.timezone)
    except ValueError as error:
        raise ValueError(
            f"--cron {offer.cron!r} in {offer.timezone} is not a valid schedule: {error}. Write one like '0 3 * * *'."
        ) from error
    return Cron(offer.cron, timezone=offer.timezone)


def _parameters_of(name: str, parameters: Mapping[str, object], folder: Path) -> dict[str, object]:
    properties = DEPLOYMENTS[name].parameters.properties
    return form_of_any_size({key: value for key, value in parameters.items() if key in properties}, properties, folder)
