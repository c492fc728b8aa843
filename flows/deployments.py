"""What can be started from Prefect's UI: the commands as flows whose parameters are a form.

Such a run does what the command does, in a process of its own: it says first what is missing, keeps others out of the
run folder and notes its end. Its state carries the one line that the command would end with.
"""

from __future__ import annotations

import dataclasses
import logging
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefect import Flow, State, flow
from prefect.states import Completed, Failed
from pydantic import BaseModel

from flows.ablation import ablation_flow
from flows.dataset import dataset_flow
from flows.forms import fill_in, form_of
from flows.pipeline import pipeline_flow
from flows.runners import with_runner
from flows.training import training_flow
from ip2p import ablation, console, plan, store
from ip2p.config import PipelineConfig
from ip2p.config_file import read_config
from ip2p.errors import told_in_a_line
from ip2p.mirror import working_copy
from ip2p.presets import PRESETS

logger = logging.getLogger("ip2p.deployments")

FLOWS: dict[plan.Use, Flow[..., Any]] = {
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
        line = told_in_a_line(error) + where
        logger.error("%s", line)
        return Failed(message=line)


def _carry_out(use: plan.Use, asked: tuple[PipelineConfig, str], data: str | None = None) -> str:
    with working_copy(asked[1]) as folder:
        config = dataclasses.replace(asked[0], out=folder)

        def work() -> None:
            _enter(config)
            with_runner(FLOWS[use], config.runner)(config, *([data] if use == "training" else []))

        was_done = not plan.carry_out(config, use, work, data)
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
