"""The knobs of a config as a form: every one of them may be left empty, and what is filled in goes over a preset.

The form is made from the dataclasses, with their types and the lines under their fields, so that no knob is told twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import signal
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefect import Flow, State, flow
from prefect.client.schemas.schedules import CronSchedule
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.settings import PREFECT_UI_URL
from prefect.states import Completed, Failed
from prefect.types.entrypoint import EntrypointType
from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic_core import to_jsonable_python

from flows.ablation import ablation_flow
from flows.dataset import dataset_flow
from flows.pipeline import pipeline_flow
from flows.runners import with_runner
from flows.training import training_flow
from ip2p import ablation, console, store, uses
from ip2p.config import PipelineConfig
from ip2p.config.fields import describe_fields
from ip2p.config.files import overlay, read_config
from ip2p.console import one_line
from ip2p.presets import PRESETS
from ip2p.store.mirror import working_copy


@lru_cache
def form_of(kind: type, name: str = "", without: tuple[str, ...] = ()) -> type[BaseModel]:
    """A model in which every field of a dataclass may be left empty; unknown ones are refused."""
    hints, told = typing.get_type_hints(kind), describe_fields(kind)
    fields: dict[str, Any] = {
        field.name: (
            _optional(hints[field.name]),
            Field(default=None, description=told.get(field.name) or inspect.getdoc(hints[field.name])),
        )
        for field in dataclasses.fields(kind)
        if field.name not in without
    }
    title = name or kind.__name__.removesuffix("Config")
    return create_model(title, __config__=ConfigDict(extra="forbid"), __doc__=inspect.getdoc(kind), **fields)


def fill_in(base: PipelineConfig, form: BaseModel | None) -> PipelineConfig:
    """The config with the fields of the form that are not empty. ValueError with the knob's name for a wrong value."""
    values = form.model_dump(mode="json", exclude_none=True) if form is not None else {}
    return typing.cast(PipelineConfig, overlay(base, values))


def differences(config: Any, base: Any) -> dict[str, Any]:
    """What a form must hold so that the base becomes the config. ValueError for a knob that is to become empty."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, before = getattr(config, field.name), getattr(base, field.name)
        if value == before or field.name == "out":
            continue
        if value is None:
            raise ValueError(f"{field.name} is set in the preset and cannot be emptied in a form. Leave it as it is.")
        is_section = dataclasses.is_dataclass(value) and dataclasses.is_dataclass(before)
        found[field.name] = differences(value, before) if is_section else to_jsonable_python(value)
    return found


def _optional(hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return form_of(typing.cast(type, hint)) | None
    if typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1]):
        return dict[str, form_of(typing.get_args(hint)[1])] | None  # type: ignore[misc]
    if isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint):
        return hint
    return (str if hint is Path else hint) | None


logger = logging.getLogger("ip2p.deployments")

FLOWS: dict[uses.Use, Flow[..., Any]] = {
    "pipeline": pipeline_flow,
    "dataset": dataset_flow,
    "training": training_flow,
}

PresetName = Literal["shapes", "sd15", "sd21", "sdxl", "paper"]
VariantName = Literal["full", "tenth", "unfiltered", "fixed-p"]
ALL_VARIANTS: list[VariantName] = list(typing.get_args(VariantName))
if TYPE_CHECKING:
    Form = BaseModel
else:
    Form = form_of(PipelineConfig, name="Settings", without=("out",))

Settings = Form | None
ABOUT = {
    "preset": "Settings to start from.",
    "out": "Run folder: where everything goes, on the machine that serves, or a URL such as s3://bucket/run. The "
    "preset's if left empty. A folder that holds a run is gone on with.",
    "config_file": "A run's config.json, or a YAML file, on the machine that serves: laid over the preset.",
    "settings": "Single knobs, over preset and file. What is left empty stays as it was.",
    "data": "The dataset folder of a run, any folder of parquet files, or a hub id.",
    "run": "Folder of a finished run, on the machine that serves.",
    "variants": "What to train.",
}
"""What the form says under each of its fields."""


@flow(name="ip2p run")
def run(preset: PresetName = "shapes", out: str = "", config_file: str = "", settings: Settings = None) -> State[Any]:
    """Everything, end to end: captions to an evaluated editor."""
    return _told(lambda: _carry_out("pipeline", _config(preset, out, config_file, settings)))


@flow(name="ip2p dataset")
def dataset(
    preset: PresetName = "shapes", out: str = "", config_file: str = "", settings: Settings = None
) -> State[Any]:
    """Captions to a filtered parquet dataset."""
    return _told(lambda: _carry_out("dataset", _config(preset, out, config_file, settings)))


@flow(name="ip2p train")
def train(
    data: str,
    preset: PresetName = "shapes",
    out: str = "",
    config_file: str = "",
    settings: Settings = None,
) -> State[Any]:
    """A dataset that exists already to an evaluated editor."""
    return _told(lambda: _carry_out("training", _config(preset, out, config_file, settings), data))


@flow(name="ip2p ablate")
def ablate(
    run: str, out: str = "", variants: list[VariantName] = ALL_VARIANTS, settings: Settings = None
) -> State[Any]:
    """Variants of a finished run, side by side: a tenth of the data, no filter, p fixed."""
    return _told(lambda: _ablate(Path(run), out, variants, settings))


def _described(flow: Flow[..., Any]) -> Flow[..., Any]:
    """With a text under every field of its form: Prefect reads them in the docstring."""
    told = [f"    {name}: {ABOUT[name]}" for name in flow.parameters.properties]
    flow.__doc__ = "\n".join([flow.description or "", "", "Args:", *told])
    return flow


_SAME: dict[str, Flow[..., Any]] = {"run": run, "dataset": dataset, "train": train, "ablate": ablate}
DEPLOYMENTS = {name: _described(each) for name, each in _SAME.items()}
"""By the name of the command that does the same."""


def _config(preset: str, out: str | None, file: str, settings: Any) -> tuple[PipelineConfig, str]:
    """The config and where it is to go."""
    base = PRESETS[preset]()
    if file:
        base = read_config(Path(file).expanduser(), base)
    config = fill_in(base, settings)
    return config, out or str(config.out)


def _told(work: Callable[[], str]) -> State[Any]:
    """Does the work; its end, good or bad, becomes the message of a state."""
    console.start_logging()
    try:
        return Completed(message=work())
    except Exception as error:
        path = console.log_failure(error)
        where = f" The log is {path}." if path and not isinstance(error, ValueError) else ""
        line = one_line(error) + where
        logger.error("%s", line)
        return Failed(message=line)


def _carry_out(use: uses.Use, asked: tuple[PipelineConfig, str], data: str | None = None) -> str:
    with working_copy(asked[1]) as folder:
        config = dataclasses.replace(asked[0], out=folder)

        def work() -> None:
            _enter(config)
            with_runner(FLOWS[use], config.runner)(config, *([data] if use == "training" else []))

        was_done = not uses.carry_out(config, use, work, data)
    return f"Everything is done already in {asked[1]}." if was_done else f"The results are in {asked[1]}."


def _ablate(run: Path, out: str, variants: Sequence[str], settings: Any) -> str:
    run = run.expanduser()
    base = ablation.config_of(run)
    with working_copy(out or str(base.out)) as folder:
        config = dataclasses.replace(fill_in(base, settings), out=folder)
        ablation.check_run(config, run)
        _enter(config)
        ablation_flow(config, run, variants)
    return f"The page is {folder / 'index.html'}."


def _enter(config: PipelineConfig) -> None:
    """As the command does; only its signals are Prefect's here."""
    store.hold(config.out)
    console.log_to_file(config.out / "run.log")


SECONDS_BETWEEN_LOOKS = 3.0
"""After which new runs are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What is offered, and how."""

    names: Sequence[str]
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the forms are filled in with, and scheduled runs are given."""
    cron: str | None = None
    timezone: str = "UTC"
    limit: int = 1
    """Runs at a time; the others wait."""


def offer_deployments(offer: Offer, ready: Callable[[str], object]) -> None:
    """Registers the deployments and works until it is interrupted; then their schedules pause and its runs end.

    `ready` is called with the address of Prefect's page once they are registered.

    ValueError for a schedule that is none.
    """
    schedule = _schedule(offer)
    logging.getLogger("prefect.runner").setLevel(logging.ERROR)  # it warns every few seconds of runs that wait
    runner = Runner(name="ip2p", limit=offer.limit, query_seconds=SECONDS_BETWEEN_LOOKS)
    for name in offer.names:
        flow = DEPLOYMENTS[name]
        deployment: Any = flow.to_deployment(
            name,
            schedule=schedule,
            parameters=_those_of(name, offer.parameters),
            description=flow.description,
            tags=["ip2p"],
            paused=False,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        runner.add_deployment(deployment)
    ready(PREFECT_UI_URL.value() or "")
    asyncio.run(_work_until_interrupted(runner))


async def _work_until_interrupted(runner: Runner) -> None:
    """Ctrl-C and SIGTERM end it alike: by cancelling, so that the runner puts everything in order on its way out."""
    working, loop = asyncio.ensure_future(runner.start()), asyncio.get_running_loop()
    await asyncio.sleep(0)  # the runner sets a handler of its own as it starts, which raises in the middle of anything
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, working.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await working


def _schedule(offer: Offer) -> Any:
    if offer.cron is None:
        return None
    try:
        CronSchedule(cron=offer.cron, timezone=offer.timezone)
    except ValueError as error:
        raise ValueError(
            f"--cron {offer.cron!r} in {offer.timezone} is no schedule: {error}. Write one such as '0 3 * * *'."
        ) from error
    return Cron(offer.cron, timezone=offer.timezone)


def _those_of(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    known = DEPLOYMENTS[name].parameters.properties
    return {key: value for key, value in parameters.items() if key in known}
