"""What a start in a run folder would do: which stages are done, and why the others are not. Nothing is started.

A stage's state is told by the fingerprints beside its results. The reasons are what differs from the settings that the
folder was last started with, and from the contents of models that it noted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ip2p import dataset, prompts, store, training
from ip2p.config import PipelineConfig
from ip2p.config.fields import RESULT_FREE, WEIGHTS_FREE
from ip2p.config.files import read_run, read_run_data
from ip2p.sources.content import MODELS, changed_settings, models_of
from ip2p.uses import USES, Arguments, is_complete, was_asked

SECTIONS = {"rendering": ("rendering", "scoring", "filtering"), "evaluation": ("evaluation", "scoring")}
"""Sections of the config that decide a stage, if there are others than its own."""

_WITHOUT_REASON: Mapping[store.State, tuple[str, ...]] = {
    "done": (),
    "unfinished": ("has not run to its end under these settings",),
    "outdated": ("made under settings or from files of an earlier start",),
}


@dataclass(frozen=True, slots=True)
class StageState:
    """The state of a stage's results, and why they are not done."""

    stage: str
    state: store.State
    reasons: tuple[str, ...] = ()


def explain(config: PipelineConfig, use: str, **arguments: Any) -> list[StageState]:
    """Returns the state of each stage of a use, in order; takes the arguments of the use, such as `data`.

    ValueError if the captions cannot be read.
    """
    stages = USES[use].work.stages
    if is_complete(config, use, **arguments):
        return [StageState(stage, "done") for stage in stages]
    states: list[StageState] = []
    for stage in stages:
        differences = _differences(config, stage, arguments)
        state, reasons = _inspect(config, stage, use, arguments)
        if state == "missing":
            states.append(StageState(stage, state, ("nothing yet",)))
            continue
        reasons = [] if state == "done" else [*differences, *reasons]
        if states and (before := states[-1]).state != "done":
            state = "outdated" if "outdated" in (state, before.state) else "unfinished"
            reasons.append(f"depends on {before.stage}")
        states.append(StageState(stage, state, tuple(reasons) or _WITHOUT_REASON[state]))
    return states


def _inspect(config: PipelineConfig, stage: str, use: str, arguments: Arguments) -> tuple[store.State, Sequence[str]]:
    """Returns the state of a stage's results by themselves, and how far they are."""
    run = store.RunFolder(config.out)
    if stage == "prompts":
        return _sum_up(prompts.shard_states(config) if run.shards("triplets") else [])
    if stage == "rendering":
        from ip2p import rendering  # imports torch

        return _sum_up(rendering.shard_states(config) if run.shards("candidates") else [])
    if stage == "dataset":
        return dataset.dataset_state(config), []
    if stage == "training":
        return training.training_state(config, arguments.get("data") or str(run.dataset)), []
    if not any((run.evaluation / "edits").glob("*.parquet")):
        return "missing", []
    if any(_differences(config, stage, arguments)):
        return "outdated", []
    if was_asked(config, use, **arguments):
        return "done", []
    return "unfinished", []


def _sum_up(states: Sequence[store.State]) -> tuple[store.State, Sequence[str]]:
    counts = Counter(states)
    if counts["missing"] == len(states):
        return "missing", []
    if counts["done"] == len(states):
        return "done", []
    return "outdated" if counts["outdated"] else "unfinished", [f"{counts['done']} of {len(states)} shards are done"]


def _differences(config: PipelineConfig, stage: str, arguments: Arguments) -> list[str]:
    """Returns what decides a stage and differs from when the folder was last started: settings, models, data."""
    models = changed_settings(config.out, models_of(config, stage))
    differences = [f"the content of {setting} changed" for setting in models]
    try:
        before = read_run(config.out)
    except (OSError, ValueError):
        return differences
    for section in SECTIONS.get(stage, (stage,)):
        prefix = "" if section == stage else f"{section}."
        earlier = dict(_settings(getattr(before, section), prefix))
        later = _settings(getattr(config, section), prefix)
        differences += [f"{name} {earlier.get(name)} → {value}" for name, value in later if earlier.get(name) != value]
    if stage == "training" and (old := read_run_data(config.out)) != (new := arguments.get("data")):
        differences.append(f"data {old or 'of the run'} → {new or 'of the run'}")
    return differences


def _settings(section: Any, prefix: str) -> Iterator[tuple[str, object]]:
    """Yields the settings of a section that decide its results, with those of the sections inside it."""
    for field in dataclasses.fields(section):
        name, value = f"{prefix}{field.name}", getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{name}.")
        elif dict(field.metadata) not in (RESULT_FREE, WEIGHTS_FREE) or f"training.{name}" in MODELS["training"]:
            yield name, value
