"""The uses of the software in one table: what each needs, checks, reads and writes, and when it is finished.

Flows, commands, deployments and "is it done" derive from `USES`: a new use is an entry here and a function in `flows/`.

Whole runs are compared by the settings that decide them, by the names, sizes and times of the files that they read and
wrote, and by the commits of what is on the hub, in milliseconds and without a model. If something differs, the stages
find out what by their own checksums.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from ip2p import __version__, ablation, prompts, store
from ip2p.config import PipelineConfig, fingerprint, to_dict
from ip2p.console import log_file, log_to_file
from ip2p.filtering import OPEN, check_thresholds
from ip2p.records import content_hash
from ip2p.scoring import check_settings
from ip2p.sources.content import MODELS, NOTE, Source, commit_of, models_of, note
from ip2p.training.joining import check_sources
from ip2p.training.trackers import check_trackers

logger = logging.getLogger(__name__)

Arguments = Mapping[str, Any]
"""What a use needs beside a config, by name, such as `data`."""
Check = Callable[[PipelineConfig, Arguments], object]
"""Gets the config and the arguments; raises ValueError with the way out if something is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """Value that a use needs beside a config; its flow has a parameter of this name."""

    name: str
    help: str
    parse: Callable[[Any], Any] = str
    """Reads the value as a person gave it."""
    choices: tuple[str, ...] = ()
    """Values that may be combined, all of them by default. If there are none, a value must be given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Part of the work that uses share: what it checks, reads and writes."""

    checks: tuple[Check, ...] = ()
    """Checks before anything is started, in order."""
    config_parts: tuple[str, ...] = ()
    """Parts of the config that decide the result."""
    stages: tuple[str, ...] = ()
    """Stages that it goes through, in order."""
    inputs: tuple[str, ...] = ()
    """Settings that name files to read."""
    writes: tuple[str, ...] = ()
    """Folders in the run folder that it fills."""

    def __add__(self, other: Work) -> Work:
        """Returns both, one after the other."""
        return Work(
            checks=self.checks + other.checks,
            config_parts=self.config_parts + other.config_parts,
            stages=self.stages + other.stages,
            inputs=self.inputs + other.inputs,
            writes=self.writes + other.writes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One use: a flow, the command and the deployment that start it, and what decides whether it is done."""

    name: str
    """Its key in `completed.json`."""
    command: str
    """Name of the command, and of the deployment."""
    title: str
    """One line of help."""
    flow: str
    """Module and name of the flow, such as `flows.pipeline:pipeline_flow`. It takes a config and the arguments."""
    work: Work
    arguments: tuple[Argument, ...] = ()
    """The argument `data` names files to read."""
    from_run: Callable[[Path], PipelineConfig] | None = None
    """Reads the settings from the folder in the argument `run`. If it is None, the use starts from a preset."""
    is_done: Callable[..., bool] | None = None
    """Decides by the runs that it makes, which keep notes of their own; gets the config and the arguments."""
    when_done: Callable[..., object] = lambda config, **arguments: None
    """Brings up to date what a use that is done shows; gets the config and the arguments."""


def check_captions(config: PipelineConfig, arguments: Arguments) -> None:
    """Requires captions, and a backend that can answer."""
    prompts.num_shards(config)
    if prompts.asks_a_model(config):
        prompts.check_backend(config.prompts)


def require_pipeline(setting: str) -> Check:
    """Makes a check for a model in diffusers' format, as a folder or a hub id."""
    return lambda config, arguments: _check_model(config, setting, "model_index.json")


def check_maker(config: PipelineConfig, arguments: Arguments) -> None:
    """Requires what makes pairs: its model, the settings it reads, and pictures if it edits such."""
    from ip2p.rendering import check_backend

    check_backend(config)


def require_clip(setting: str, *, optional: bool = False) -> Check:
    """Makes a check for a CLIP, if it is a folder and not one of open_clip's names."""

    def check(config: PipelineConfig, arguments: Arguments) -> None:
        name = attrgetter(setting)(config)
        if optional and not name:
            return
        if name.startswith((".", "/", "~")) or Path(name).is_dir():
            _check_model(config, setting, "open_clip_config.json")

    return check


def _check_model(config: PipelineConfig, setting: str, marker: str) -> None:
    from ip2p.models.loading import check_model_source

    check_model_source(attrgetter(setting)(config), what=setting, marker=marker)


def check_data(config: PipelineConfig, arguments: Arguments) -> None:
    """Requires the columns of a pair, if the data is on this machine."""
    check_sources(arguments["data"], config.training)


def check_report_to(config: PipelineConfig, arguments: Arguments) -> None:
    """Requires trackers that are installed and logged in, since a launched training cannot ask."""
    check_trackers(config.training.report_to)


def _variant_configs(config: PipelineConfig, run: Path, variants: Iterable[str]) -> Iterator[PipelineConfig]:
    return (variant.config for variant in ablation.variants_of(run, config, tuple(variants)))


def _are_variants_done(config: PipelineConfig, run: Path, variants: Iterable[str]) -> bool:
    return all(is_complete(variant, "pipeline") for variant in _variant_configs(config, run, variants))


def _write_page(config: PipelineConfig, run: Path, variants: Iterable[str]) -> None:
    ablation.write_page(list(_variant_configs(config, run, variants)), config.out / "index.html")


DATASET = Work(
    checks=(
        lambda config, arguments: check_settings(config.scoring),
        lambda config, arguments: check_thresholds(config.filtering),
        check_captions,
        check_maker,
        require_clip("scoring.clip_model"),
    ),
    config_parts=("prompts", "rendering", "scoring", "filtering", "dataset", "evaluation.domain"),
    stages=("prompts", "rendering", "dataset"),
    inputs=("prompts.captions", "prompts.pictures", "prompts.examples", *MODELS["prompts"], *MODELS["rendering"]),
    writes=("pictures", "answers", "triplets", "candidates", "pairs", "dataset"),
)
EDITOR = Work(
    checks=(
        require_clip("evaluation.judge_clip_model", optional=True),
        require_pipeline("training.pretrained_model_name_or_path"),
        check_report_to,
    ),
    config_parts=("training", "evaluation", "scoring"),
    stages=("training", "evaluation"),
    inputs=(*MODELS["training"], *MODELS["evaluation"], "evaluation.data"),
    writes=("training", "model", "evaluation"),
)
DATA = Argument(name="data", help="The dataset folder of a run, any folder of parquet files, or a hub id.")
RUN = Argument(
    name="run",
    help="Folder of a finished run, on the machine that serves.",
    parse=lambda folder: Path(folder).expanduser(),
)
VARIANTS = Argument(
    name="variants", help="What to train.", parse=ablation.choose_variants, choices=tuple(ablation.VARIANTS)
)

_USES = (
    Use(
        name="pipeline",
        command="run",
        title="Runs everything, end to end: captions to an evaluated editor.",
        flow="flows.pipeline:pipeline_flow",
        work=DATASET + EDITOR,
    ),
    Use(
        name="dataset",
        command="dataset",
        title="Makes the dataset only: captions to filtered pairs in parquet.",
        flow="flows.dataset:dataset_flow",
        work=DATASET,
    ),
    Use(
        name="training",
        command="train",
        title="Trains on a dataset that exists already, and evaluates.",
        flow="flows.training:training_flow",
        work=EDITOR + Work(checks=(check_data,)),
        arguments=(DATA,),
    ),
    Use(
        name="ablation",
        command="ablate",
        title="Trains variants of a finished run (a tenth of the data, no filter, p fixed) and lays them side by side.",
        flow="flows.ablation:ablation_flow",
        work=Work(
            checks=(lambda config, arguments: ablation.check_run(config, arguments["run"]),),
            writes=tuple(ablation.VARIANTS),
        ),
        arguments=(RUN, VARIANTS),
        from_run=ablation.config_of,
        is_done=_are_variants_done,
        when_done=_write_page,
    ),
)
USES = {use.name: use for use in _USES}

WRITTEN_ALWAYS = ("config.json", "summary.json", "completed.json", "run.log", NOTE)
"""Files of a run folder that do not decide whether it is finished."""


def check_inputs(config: PipelineConfig, name: str, **arguments: Any) -> None:
    """Checks captions, models, data: all that a use needs. ValueError with the way out if something is missing."""
    for check in USES[name].work.checks:
        check(config, arguments)


def enter(config: PipelineConfig) -> None:
    """Claims the run folder for this process and logs into it, or into the log of a run that it is a part of."""
    store.hold(config.out)
    log = log_file()
    if log is None or log.parent not in config.out.resolve().parents:
        log_to_file(config.out / "run.log")


def carry_out(config: PipelineConfig, name: str, start: Callable[[], object], **arguments: Any) -> bool:
    """Runs a use in its folder, from the checks to the note of its end; returns False if it is done already.

    `start` runs the flow.
    """
    use = USES[name]
    if is_complete(config, name, **arguments):
        note_models(config, name)
        use.when_done(config, **arguments)
        return False
    check_inputs(config, name, **arguments)
    enter(config)
    if any(any((config.out / folder).glob("*")) for folder in use.work.writes):
        logger.info("resuming in %s: finished work there is kept", config.out)
    note_models(config, name)
    if use.is_done is None:
        write_config(config, arguments.get("data"))
    start()
    if use.is_done is None:
        record_completion(config, name, **arguments)
    return True


def record_completion(config: PipelineConfig, name: str, **arguments: Any) -> None:
    """Notes that a use has run to its end in this folder, unless pairs are still open: the next run asks about them."""
    if num := store.summarise_shards(config.out, "candidates").get(OPEN, 0):
        logger.warning("%d pairs are open, as the judge did not answer; the same command asks about them again", num)
        return
    path = config.out / "completed.json"
    store.write_json(path, {**store.read_json_or_empty(path), name: _state(config, name, **arguments)})


def is_complete(config: PipelineConfig, name: str, **arguments: Any) -> bool:
    """Returns True if the same was asked before, ran to its end, and neither its inputs nor its results changed."""
    if (is_done := USES[name].is_done) is not None:
        return is_done(config, **arguments)
    noted = store.read_json_or_empty(config.out / "completed.json").get(name)
    return noted is not None and noted == _state(config, name, **arguments)


def note_models(config: PipelineConfig, name: str) -> None:
    """Notes in the run folder which contents the models of a use have."""
    note(config.out, _models(config, name))


def _models(config: PipelineConfig, name: str) -> list[Source]:
    return [model for stage in USES[name].work.stages for model in models_of(config, stage)]


def was_asked(config: PipelineConfig, name: str, **arguments: Any) -> bool:
    """Returns True if what was asked when the use last ran to its end in this folder is the same, whatever is there."""
    noted = store.read_json_or_empty(config.out / "completed.json").get(name)
    return isinstance(noted, dict) and noted.get("asked") == _asked(config, USES[name], arguments)


def shard_numbers(config: PipelineConfig) -> list[int]:
    """Returns the numbers of the run's shards, and removes shards that an earlier, longer run left behind."""
    num_shards = prompts.num_shards(config)
    for stage in store.SHARDED:
        store.RunFolder(config.out).drop_shards_from(stage, num_shards)
    return list(range(num_shards))


def write_config(config: PipelineConfig, data: str | None = None) -> None:
    """Writes the run's resolved config."""
    store.write_run_config(config.out, to_dict(config), data)


def _state(config: PipelineConfig, name: str, **arguments: Any) -> dict[str, str]:
    use = USES[name]
    data = arguments.get("data")
    files = [data, *(attrgetter(setting)(config) for setting in use.work.inputs)]
    sources = [*_models(config, name), *([Source("data", data, is_data=True)] if data else [])]
    paths = (path for file in filter(None, files) for path in _files_of(Path(file).expanduser()))
    return {
        "asked": _asked(config, use, arguments),
        "inputs": _signature(paths, filter(None, map(commit_of, sources))),
        "results": _signature(_results(config.out)),
    }


def _asked(config: PipelineConfig, use: Use, arguments: Arguments) -> str:
    parts = [attrgetter(part)(config) for part in use.work.config_parts]
    values = [arguments.get(argument.name) for argument in use.arguments] or [None]
    return fingerprint(__version__, *parts, *values)


def _files_of(path: Path) -> Iterable[Path]:
    return sorted(path.rglob("*")) if path.is_dir() else [path]


def _results(root: Path) -> Iterable[Path]:
    return (path for path in sorted(root.rglob("*")) if not (path.parent == root and path.name in WRITTEN_ALWAYS))


def _signature(paths: Iterable[Path], commits: Iterable[str] = ()) -> str:
    """Hashes names, sizes and times of modification, and commits of what is on the hub."""
    facts: list[object] = [*commits]
    for path in paths:
        if path.is_file():
            stat = path.stat()
            facts += [path, stat.st_size, stat.st_mtime_ns]
    return content_hash(*facts)
