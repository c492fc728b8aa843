"""What each command does; everything heavy is imported inside."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ip2p.cli.arguments import parse, parse_existing_run, parse_new_run, take_option, take_run_folder, wants_help
from ip2p.cli.data import enter, import_pairs, inspect
from ip2p.cli.results import describe_results
from ip2p.config import PipelineConfig
from ip2p.config.files import read_run, read_run_data
from ip2p.console import end_on_signals
from ip2p.store.mirror import is_url, working_copy

logger = logging.getLogger(__name__)


def run(words: list[str]) -> None:
    """Everything, end to end: captions to an evaluated editor."""
    config = parse_new_run(words, "run")
    run_flow(config, "pipeline")


def dataset(words: list[str]) -> None:
    """Regenerates the dataset only; `dataset import` takes over other people's, `dataset inspect` looks into one."""
    if words and words[0] in ("import", "inspect"):
        return {"import": import_pairs, "inspect": inspect}[words[0]](words[1:])
    repo_id = take_option(words, "push-to-hub")
    config = parse_new_run(words, "dataset", options=" [--push-to-hub ID]")
    run_flow(config, "dataset")
    if repo_id:
        from ip2p.hub import push_dataset

        print(f"  {'pushed to':<11} {push_dataset(config.out / 'dataset', repo_id)}")


def train(words: list[str]) -> None:
    """Trains on parquet shards that exist already, and evaluates."""
    data = take_option(words, "data")
    config = parse_new_run(words, "train", options=" --data FOLDER_OR_HUB_ID")
    if not data:
        raise ValueError(
            "`ip2p train` needs --data: the dataset folder of a run, any folder of parquet files, or a hub id."
        )
    run_flow(config, "training", data=data)


def evaluate(words: list[str]) -> None:
    """Measures a run's editor again and rewrites the report."""
    data = take_option(words, "data")
    config = parse_existing_run(words, "evaluate")
    enter(config)
    data = data or read_run_data(config.out)
    from ip2p import evaluation, uses

    evaluation.evaluate(config, data=data)
    uses.write_config(config, data)
    _report(config)


def refilter(words: list[str]) -> None:
    """Applies other thresholds to the scores on disk and rewrites the dataset."""
    config = parse_existing_run(words, "refilter")
    _check_only_filtering(config)
    enter(config)
    from ip2p import dataset as dataset_stage
    from ip2p import evaluation, rendering, uses

    data = read_run_data(config.out)
    rendering.refilter(config)
    uses.write_config(config, data)
    rendering.summarise(config)
    dataset_stage.write_dataset(config)
    evaluation.oracle_precision(config)
    _report(config)
    if (config.out / "model").exists():
        print(
            "The model was trained on the earlier pairs. "
            f"This trains it on these: ip2p run --config {config.out / 'config.json'}"
        )


def report(words: list[str]) -> None:
    """Rewrites a run's report."""
    config = parse_existing_run(words, "report")
    _report(config)


def compare(words: list[str]) -> None:
    """Lays several runs side by side on one page: ip2p compare RUN RUN … [--output PAGE.html]"""
    output = take_option(words, "output")
    if wants_help(words) or len(words) < 2:
        raise ValueError(
            "`ip2p compare` takes two run folders or more. Write: ip2p compare RUN RUN [--output PAGE.html]"
        )
    from ip2p.report import write_comparison

    configs = [dataclasses.replace(read_run(Path(word)), out=Path(word)) for word in words]
    print(write_comparison(configs, Path(output) if output else None))


def ablate(words: list[str]) -> None:
    """Trains variants of a finished run (a tenth of the data, no filter, p fixed) and lays them side by side."""
    from ip2p import ablation

    names = take_option(words, "variants")
    run = take_run_folder(words, "ablate")
    base = ablation.config_of(run) if run else PipelineConfig()
    usage = "ip2p ablate RUN [--variants full,tenth,unfiltered,fixed-p] [--out FOLDER] [--stage.knob VALUE …]"
    config = parse(PipelineConfig, words, prog="ip2p ablate RUN", description=usage, default=base)
    if run is None:
        return
    chosen = ablation.choose_variants(names.split(",") if names else list(ablation.VARIANTS))
    _carry_out(config, "ablation", run=run, variants=chosen)
    for name in chosen:
        print(f"{name}\n{describe_results(dataclasses.replace(config, out=config.out / name))}")
    if (page := config.out / "index.html").exists():
        print(f"{'page':<13} {page}")


def run_flow(config: PipelineConfig, use: str, **arguments: Any) -> None:
    """Carries out a use unless it is done, and prints where its results are."""
    _carry_out(config, use, **arguments)
    print(describe_results(config))


def _carry_out(config: PipelineConfig, use: str, **arguments: Any) -> None:
    from ip2p import uses

    started = time.monotonic()
    if uses.carry_out(config, use, lambda: _serve_and_run(config, use, **arguments), **arguments):
        print(f"Done in {time.monotonic() - started:.0f} s.")
    else:
        print(f"Everything is done already in {config.out}.")


def _serve_and_run(config: PipelineConfig, use: str, **arguments: Any) -> None:
    from flows.server import prefect_server
    from ip2p.uses import USES

    end_on_signals()
    with prefect_server(meanwhile=lambda: importlib.import_module(USES[use].flow.partition(":")[0])):
        from flows.runners import flow_of

        flow_of(use, config.runner)(config, **arguments)


def _report(config: PipelineConfig) -> None:
    from ip2p.report import write_report

    write_report(config)
    print(describe_results(config))


def _check_only_filtering(config: PipelineConfig) -> None:
    """ValueError where a flag asks for more than the scores on disk can give."""
    before = read_run(config.out)
    free = ("out", "filtering", "dataset")
    changed = [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in free and getattr(config, field.name) != getattr(before, field.name)
    ]
    if changed:
        way = f"ip2p run --config {config.out / 'config.json'}"
        raise ValueError(f"`ip2p refilter` changes filtering and dataset, got {changed[0]}. For the rest use `{way}`.")


@contextmanager
def mirrored(words: list[str]) -> Iterator[list[str]]:
    """The words of a command with a run folder's URL replaced by its local copy, which the store follows meanwhile."""
    places = [index for index, word in enumerate(words) if is_url(_value(word)) and _names_a_run(words, index)]
    if not places:
        yield words
        return
    place = places[0]
    flag, url = words[place][: -len(_value(words[place]))], _value(words[place])
    with working_copy(url) as local:
        yield [*words[:place], f"{flag}{local}", *words[place + 1 :]]
    print(f"  {'stored in':<11} {url}")


def _value(word: str) -> str:
    return word.removeprefix("--out=")


def _names_a_run(words: list[str], index: int) -> bool:
    """Whether a word is the value of --out or stands by itself, rather than as the value of another flag."""
    before = words[index - 1] if index else ""
    if words[index].startswith("--"):
        return words[index].startswith("--out=")
    return before == "--out" or not before.startswith("--")
