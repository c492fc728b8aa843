"""Commands on pairs: to import, derive, export, inspect and forecast."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from ip2p import dataset, plan, uses
from ip2p.cli.arguments import Columns, NewRun, OfRun, OverSettings, Whole, in_section, read_columns
from ip2p.cli.parsing import local_copy
from ip2p.cli.runs import describe_results, enter
from ip2p.config import PipelineConfig
from ip2p.config.files import read_run
from ip2p.console import suggest
from ip2p.dataset import composition, exporting, inspection, inverse, preferences, sessions
from ip2p.dataset.layouts import LAYOUTS
from ip2p.prompts.wording import Word, ask_model, word_by
from ip2p.sources.columns import NEEDED, OURS
from ip2p.sources.pairs import SourceRow, read_source
from ip2p.store.mirror import url_of

logger = logging.getLogger(__name__)

WORDINGS = Path("answers", "wordings.jsonl")
"""Journal in a run of what a server answered about changes between captions."""


@dataclass(frozen=True, kw_only=True)
class PairsImport(OverSettings):
    """Arguments of `ip2p dataset import`."""

    common: ClassVar[tuple[str, ...]] = (
        *in_section("filtering.thresholds", "original", "edited", "direction", "image", "contrast"),
        *in_section("filtering", "max_pairs_per_triplet"),
        *in_section("scoring", "clip_model"),
        *in_section("dataset", "test_fraction", "license", "seed"),
    )
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A folder of the original software, an image folder, parquet files or a hub id."""
    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Run folder to write, or its URL."""
    columns: Columns = None
    """Names of the source's columns. Default: those of known datasets."""
    split: str = "train"
    """Split to import, of a hub dataset or of files whose names tell theirs."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    score: bool = False
    """Score the pairs with CLIP and filter them."""

    def base(self) -> PipelineConfig:
        """Returns the defaults with one candidate per triplet, in the target folder."""
        base = PipelineConfig()
        rendering = dataclasses.replace(base.rendering, num_candidates=1, keep_rejected_images=True)
        return dataclasses.replace(base, rendering=rendering, out=Path(self.target))


@dataclass(frozen=True, kw_only=True)
class Derivation(OverSettings):
    """Arguments of `ip2p dataset invert`, and of what else derives pairs from a run."""

    common: ClassVar[tuple[str, ...]] = (
        *in_section("prompts", "backend", "model", "server.base_url", "temperature", "seed", "examples"),
        *in_section("filtering.thresholds", "original", "edited", "direction", "image"),
        *in_section("evaluation", "domain"),
    )
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder whose accepted pairs are taken."""
    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Run folder to write, or its URL."""
    score: bool = False
    """Score the pairs with CLIP and filter them."""

    def base(self) -> PipelineConfig:
        """Returns the run's settings with one candidate per triplet that is not rendered, in the target folder."""
        run = read_run(Path(self.source))
        rendering = dataclasses.replace(PipelineConfig().rendering, num_candidates=1, keep_rejected_images=True)
        return dataclasses.replace(run, rendering=rendering, out=Path(self.target))


@dataclass(frozen=True, kw_only=True)
class Composition(Derivation):
    """Arguments of `ip2p dataset compose`."""

    continued_by: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN")] = ()
    """Run folders whose edits start from pictures that RUN has."""
    join: bool = False
    """Join instructions plainly, "X, and y", instead of asking a language model."""


@dataclass(frozen=True, kw_only=True)
class PairsExport:
    """Arguments of `ip2p dataset export`."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A run folder, or any pairs that `ip2p dataset import` reads."""
    to: Annotated[str, tyro.conf.arg(metavar="LAYOUT", help=f"Layout to write: {', '.join(LAYOUTS)}.")]
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """Folder to write; an earlier export in it is replaced."""
    split: str | None = None
    """Split to export. Default: every split."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""


@dataclass(frozen=True, kw_only=True)
class Preferences(OfRun):
    """Arguments of `ip2p dataset preferences`."""

    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """Folder to write; an earlier one in it is replaced."""
    own_originals: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also compare edits of different originals, each with its own."""


@dataclass(frozen=True, kw_only=True)
class SessionsOf(OfRun):
    """Arguments of `ip2p dataset sessions`."""

    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """Folder to write; an earlier one in it is replaced."""
    continued_by: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN")] = ()
    """Run folders whose edits start from pictures that RUN has."""
    max_turns: Annotated[Whole, tyro.conf.arg(metavar="N")] = 3
    """Longest session, in edits."""


@dataclass(frozen=True, kw_only=True)
class Trials(OfRun):
    """Arguments of `ip2p dataset judges`."""

    n: Annotated[Whole, tyro.conf.arg(aliases=["-n"])] = 700
    """Pairs to judge, each with a right and a wrong instruction."""


@dataclass(frozen=True, kw_only=True)
class Planning(NewRun):
    """Arguments of `ip2p plan`."""

    triplets: Whole | None = None
    """Triplets of the whole dataset. Default: as many as the captions give."""
    sample: Whole = 20
    """Captions to measure on."""
    devices: Whole = 1
    """Devices that will share the work."""


def import_pairs(arguments: PairsImport, config: PipelineConfig) -> None:
    """Imports pairs from elsewhere as a run and a dataset."""
    columns = read_columns(arguments.columns, NEEDED, tuple(name for name in OURS if name not in NEEDED))
    with local_copy(url_of(config.out)) as folder:
        config = dataclasses.replace(config, out=folder)
        enter(config)
        source = arguments.source
        rows = read_source(source, columns, split=arguments.split, revision=arguments.revision)
        name = Path(source).name if Path(source).expanduser().exists() else source
        _import(config, rows, source, name, score=arguments.score)
        print(describe_results(config))


def _import(
    config: PipelineConfig, rows: Iterator[SourceRow], source: str, name: str, *, score: bool
) -> dict[str, int]:
    """Writes the run and the dataset of imported rows; returns counts by reason."""
    from ip2p import rendering
    from ip2p.dataset.importing import import_rows
    from ip2p.scoring.scorer import load_scorer

    scorer = load_scorer(config.scoring) if score else None
    uses.write_config(config, source)
    counts = import_rows(config, rows, name, scorer)
    logger.info("imported %s", ", ".join(f"{count} {what}" for what, count in counts.items()))
    rendering.summarise(config)
    dataset.write_dataset(config)
    return counts


def invert(arguments: Derivation, config: PipelineConfig) -> None:
    """Turns a run's pairs round, edited to original, with new instructions, as a run and a dataset."""
    run = read_run(Path(arguments.source))
    with local_copy(url_of(config.out)) as folder:
        config = dataclasses.replace(config, out=folder)
        word = _word_in(config) or ask_model(config.prompts, folder / WORDINGS)
        enter(config)
        left_out = Counter[str]()
        rows = inverse.invert_pairs(run, word, left_out)
        counts = _import(config, rows, arguments.source, f"inverse of {run.out.name}", score=arguments.score)
        print(f"  {'inverse':<11} {', '.join(f'{num} {what}' for what, num in (counts | left_out).items())}")
        print(describe_results(config))


def compose(arguments: Composition, config: PipelineConfig) -> None:
    """Makes one edit of two that follow each other, with one instruction, as a run and a dataset."""
    runs = [read_run(folder) for folder in (Path(arguments.source), *arguments.continued_by)]
    with local_copy(url_of(config.out)) as folder:
        config = dataclasses.replace(config, out=folder)
        word = _word_in(config)
        if word is None and not arguments.join:
            word = ask_model(config.prompts, folder / WORDINGS)
        enter(config)
        left_out = Counter[str]()
        rows = composition.compose_pairs(runs, word, left_out, join=arguments.join)
        counts = _import(config, rows, arguments.source, "composition", score=arguments.score)
        print(f"  {'composed':<11} {', '.join(f'{num} {what}' for what, num in (counts | left_out).items())}")
        print(describe_results(config))


def _word_in(config: PipelineConfig) -> Word | None:
    """Returns how the configured domain words edits; None if it does not."""
    from ip2p.evaluation.cases import load_domain

    domain: Any = load_domain(config.evaluation.domain) if config.evaluation.domain else None
    return word_by(domain, config.prompts.seed) if hasattr(domain, "word_edit") else None


def export_pairs(arguments: PairsExport) -> None:
    """Writes pairs in the layout of another trainer: AI Toolkit, musubi-tuner, SimpleTuner and others."""
    if arguments.to not in LAYOUTS:
        raise ValueError(f"unknown layout {arguments.to}. {suggest(arguments.to, list(LAYOUTS))}")
    layout, out = LAYOUTS[arguments.to], arguments.out.expanduser()
    counts = exporting.export_dataset(arguments.source, layout, out, split=arguments.split, revision=arguments.revision)
    print(f"{out}: {', '.join(f'{num} {what}' for what, num in counts.items())}")
    print(f"Start it with: {layout.start.replace('FOLDER', str(out))}")


def prefer(arguments: Preferences) -> None:
    """Writes accepted edits against rejected ones, in the columns that Diffusion-DPO trainers read."""
    out = arguments.out.expanduser()
    config = read_run(arguments.folder)
    counts = preferences.write_preferences(config, out, own_originals=arguments.own_originals)
    print(f"{out}: {', '.join(f'{num} {what}' for what, num in counts.items())}")


def join_sessions(arguments: SessionsOf) -> None:
    """Joins edits that follow each other into sessions of several turns, in MagicBrush's columns."""
    out = arguments.out.expanduser()
    runs = [read_run(folder) for folder in (arguments.folder, *arguments.continued_by)]
    counts = sessions.write_sessions(runs, out, arguments.max_turns)
    print(f"{out}: {', '.join(f'{num} {what}' for what, num in counts.items())}")


def inspect(arguments: OfRun) -> None:
    """Prints the funnel, the scores, the draws, the duplicates and examples of a run."""
    print(inspection.describe(read_run(arguments.folder)))


def try_judges(arguments: Trials) -> None:
    """Measures how well the judges of a run's filter tell right instructions from wrong ones, on its domain's pairs."""
    from ip2p.evaluation.trials import try_judges as put_on_trial

    for name, reliability in put_on_trial(read_run(arguments.folder), arguments.n).items():
        print(f"{name:<16} {reliability}")


def plan_costs(arguments: Planning, config: PipelineConfig) -> None:
    """Renders a few candidates, measures, and forecasts what the whole dataset costs."""
    uses.check_inputs(config, "dataset")
    measured = plan.measure_sample(config, arguments.sample)
    forecast = plan.forecast(measured, config, arguments.triplets)
    print(plan.describe(measured, forecast, config, arguments.devices))
