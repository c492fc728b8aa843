"""Commands that make a run or work on one; everything heavy is imported inside."""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from ip2p import ablation, evaluation, uses
from ip2p import dataset as dataset_stage
from ip2p.cli.arguments import ExistingRun, NewRun, OfRun, OverSettings, in_section
from ip2p.cli.parsing import local_copy
from ip2p.config import PipelineConfig
from ip2p.config.files import read_run, read_run_data
from ip2p.console import end_on_signals, heed_signals_during, last_act
from ip2p.explain import explain
from ip2p.hub import push_dataset
from ip2p.report import write_comparison, write_report
from ip2p.store import RunFolder, read_summary
from ip2p.store.mirror import url_of


@dataclass(frozen=True, kw_only=True)
class Start(NewRun):
    """Arguments of a command that starts a use."""

    explain: bool = False
    """Say which stages are done and why the others are not, and start nothing."""


@dataclass(frozen=True, kw_only=True)
class DatasetRun(Start):
    """Arguments of `ip2p dataset`."""

    common: ClassVar[tuple[str, ...]] = (
        "out",
        *in_section("prompts", "captions", "num_captions", "num_triplets_per_caption"),
        *in_section("rendering", "num_inference_steps", "num_candidates", "batch_size"),
        *in_section("dataset", "test_fraction"),
        *in_section("runner", "kind", "max_workers"),
    )
    push_to_hub: Annotated[str | None, tyro.conf.arg(metavar="OWNER/NAME")] = None
    """Upload the dataset to this repository."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun(Start):
    """Arguments of `ip2p train`."""

    common: ClassVar[tuple[str, ...]] = (
        "out",
        *in_section("training", "pretrained_model_name_or_path", "resolution", "train_batch_size"),
        *in_section("training", "gradient_accumulation_steps", "learning_rate", "max_train_steps"),
        *in_section("training", "mixed_precision", "use_lora"),
        *in_section("evaluation", "num_edits"),
    )
    data: Annotated[str, tyro.conf.arg(help=uses.DATA.help)]


@dataclass(frozen=True, kw_only=True)
class Evaluation(ExistingRun):
    """Arguments of `ip2p evaluate`."""

    common: ClassVar[tuple[str, ...]] = (
        *in_section("evaluation", "num_edits", "num_sweep_edits", "guidance_scale", "image_guidance_scale"),
        *in_section("evaluation", "image_guidance_scales", "num_inference_steps", "lpips", "vlm.model"),
        *in_section("evaluation", "batch_size", "seed"),
    )
    data: str | None = None
    """Data that the editor was trained on, if that was not the run's own dataset. Default: as the run recorded it."""


@dataclass(frozen=True, kw_only=True)
class Refiltering(ExistingRun):
    """Arguments of `ip2p refilter`."""

    common: ClassVar[tuple[str, ...]] = (
        *in_section("filtering.thresholds", "original", "edited", "direction", "image", "max_image"),
        *in_section("filtering", "max_pairs_per_triplet", "selection"),
        *in_section("dataset", "test_fraction", "train_share", "max_duplicate_similarity"),
    )

    def check(self, config: PipelineConfig) -> None:
        """Refuses settings that ask for more than the scores on disk can give."""
        super().check(config)
        before = dataclasses.replace(self.base(), filtering=config.filtering, dataset=config.dataset)
        sections = (field.name for field in dataclasses.fields(config))
        changed = [name for name in sections if getattr(config, name) != getattr(before, name)]
        if changed:
            way = _run_again(config)
            raise ValueError(f"refilter changes filtering and dataset, got {changed[0]}. For the rest use `{way}`.")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Arguments of `ip2p compare`."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN …")]
    """Two run folders or more, or their URLs."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="PAGE.html")] = None
    """Page to write. Default: a file beside the first run."""


@dataclass(frozen=True, kw_only=True)
class Ablation(OfRun, OverSettings):
    """Arguments of `ip2p ablate`."""

    variants: Annotated[str | None, tyro.conf.arg(metavar=",".join(ablation.VARIANTS))] = None
    """Variants to train, separated by commas. Default: all."""

    def base(self) -> PipelineConfig:
        """Returns the run's settings with the folder beside it that the variants go to."""
        return ablation.config_of(self.folder)


def run(arguments: Start, config: PipelineConfig) -> None:
    """Runs everything, end to end: captions to an evaluated editor."""
    if not _explain(arguments, config, "pipeline"):
        run_flow(config, "pipeline")


def dataset(arguments: DatasetRun, config: PipelineConfig) -> None:
    """Makes the dataset only: captions to filtered pairs. See `dataset import` and `dataset inspect` too."""
    if _explain(arguments, config, "dataset"):
        return
    finished = run_flow(config, "dataset")
    if arguments.push_to_hub:
        print(f"  {'pushed to':<11} {push_dataset(finished.out / 'dataset', arguments.push_to_hub)}")


def train(arguments: TrainingRun, config: PipelineConfig) -> None:
    """Trains on a dataset that exists already, and evaluates."""
    if not _explain(arguments, config, "training", data=arguments.data):
        run_flow(config, "training", data=arguments.data)


def evaluate(arguments: Evaluation, config: PipelineConfig) -> None:
    """Measures a run's editor again and rewrites the report."""
    enter(config)
    data = arguments.data or read_run_data(config.out)
    evaluation.evaluate(config, data=data)
    uses.write_config(config, data)
    report(arguments, config)


def refilter(arguments: Refiltering, config: PipelineConfig) -> None:
    """Applies other thresholds to the scores on disk and rewrites the dataset."""
    from ip2p import rendering

    enter(config)
    data = read_run_data(config.out)
    rendering.refilter(config)
    uses.write_config(config, data)
    rendering.summarise(config)
    dataset_stage.write_dataset(config)
    evaluation.oracle_precision(config)
    report(arguments, config)
    if (config.out / "model").exists():
        print(f"The model was trained on the earlier pairs. To train it on these: {_run_again(config)}")


def report(arguments: ExistingRun, config: PipelineConfig) -> None:
    """Rewrites a run's report."""
    write_report(config)
    print(describe_results(config))


def compare(arguments: Comparison) -> None:
    """Lays several runs side by side on one page."""
    if len(arguments.runs) < 2:
        raise ValueError("`ip2p compare` needs two run folders or more. Write: ip2p compare RUN RUN")
    with ExitStack() as stack:
        folders = [stack.enter_context(local_copy(run)) for run in arguments.runs]
        print(write_comparison([read_run(folder) for folder in folders], arguments.output))


def ablate(arguments: Ablation, config: PipelineConfig) -> None:
    """Trains variants of a finished run (a tenth of the data, no filter, p fixed) and lays them side by side."""
    names = arguments.variants.split(",") if arguments.variants else list(ablation.VARIANTS)
    chosen = ablation.choose_variants(names)
    _carry_out(config, "ablation", run=arguments.folder, variants=chosen)
    for name in chosen:
        print(f"{name}\n{describe_results(dataclasses.replace(config, out=config.out / name))}")
    if (page := config.out / "index.html").exists():
        print(f"{'page':<13} {page}")


def _run_again(config: PipelineConfig) -> str:
    """Returns the command that runs all stages again under the settings of a run folder."""
    return f"ip2p run --config {config.out / 'config.json'}"


def _explain(arguments: Start, config: PipelineConfig, use: str, **values: object) -> bool:
    """Prints the state of each stage if that is asked for, and returns whether it is."""
    if arguments.explain:
        with local_copy(url_of(config.out)) as folder:
            for each in explain(dataclasses.replace(config, out=folder), use, **values):
                print(f"  {each.stage:<11} {each.state:<11} {'; '.join(each.reasons)}".rstrip())
    return arguments.explain


def run_flow(config: PipelineConfig, use: str, **arguments: object) -> PipelineConfig:
    """Carries out a use unless it is done, and prints where its results are.

    Returns the config with the folder that it worked in, a local copy if the run folder is a URL.
    """
    with local_copy(url_of(config.out)) as folder:
        config = dataclasses.replace(config, out=folder)
        _carry_out(config, use, **arguments)
        print(describe_results(config))
    return config


def describe_results(config: PipelineConfig) -> str:
    """Lists figures of the stages that have run, and the paths of what they made."""
    return "\n".join(f"  {name:<11} {value}" for name, value in _results(config))


def _results(config: PipelineConfig) -> Iterator[tuple[str, str]]:
    folder, summary = RunFolder(config.out), read_summary(config.out)
    prompts, rendering, pairs, scores = (
        summary.get(name, {}) for name in ("prompts", "rendering", "dataset", "evaluation")
    )
    if prompts:
        yield "triplets", f"{prompts.get('kept', 0)} kept of {prompts.get('generations', 0)}"
    if rendering:
        words = f"{rendering.get('accepted', 0)} accepted of {rendering.get('candidates', 0)}"
        if (precision := pairs.get("oracle_precision")) is not None:
            of_all = pairs.get("oracle_precision_all")
            words += f"; right by the oracle: {precision:.3f}"
            words += "" if of_all is None else f", of all candidates {of_all:.3f}"
        yield "pairs", words
    if scores.get("success") is not None:
        rates = {name: figures.get("success") for name, figures in scores.get("baselines", {}).items()}
        baselines = ", ".join(f"{name} {rate:.3f}" for name, rate in rates.items() if rate is not None)
        words = f"{scores['success']:.3f} (done {scores['done']:.3f}, kept {scores['kept']:.3f})"
        yield "success", f"{words}; {baselines}" if baselines else words
    for name, path in (("dataset", folder.dataset), ("model", folder.model), ("report", folder.report / "index.html")):
        if path.exists():
            yield name, str(path)
    yield "summary", str(folder.root / "summary.json")


def enter(config: PipelineConfig) -> None:
    """Claims the run folder for this process, logs into it, and makes Ctrl-C end in one line."""
    uses.enter(config)
    end_on_signals()


def _carry_out(config: PipelineConfig, use: str, **arguments: object) -> None:
    started = time.monotonic()
    if uses.carry_out(config, use, lambda: _serve_and_run(config, use, **arguments), **arguments):
        print(f"Done in {time.monotonic() - started:.0f} s.")
    else:
        print(f"Everything is done already in {config.out}.")


def _serve_and_run(config: PipelineConfig, use: str, **arguments: object) -> None:
    from flows.server import prefect_server

    end_on_signals()
    with prefect_server(meanwhile=lambda: importlib.import_module(uses.USES[use].flow.partition(":")[0])):
        from flows.ending import tell_of_interruption
        from flows.runners import flow_of

        flow = flow_of(use, config.runner)
        # In this thread Prefect would heed SIGTERM itself, and wait for the shards in flight.
        with last_act(tell_of_interruption):
            heed_signals_during(lambda: flow(config, **arguments))
