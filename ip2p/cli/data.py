"""Commands before and after a dataset is made: importing pairs, inspecting them, and forecasting their cost."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from ip2p import dataset, uses
from ip2p.cli.arguments import Columns, NewRun, OfRun, OverSettings, Whole, in_section, read_columns
from ip2p.cli.parsing import local_copy
from ip2p.cli.runs import describe_results, enter, url_of
from ip2p.config import PipelineConfig
from ip2p.config.files import read_run
from ip2p.dataset import inspection
from ip2p.sources.columns import NEEDED, OURS
from ip2p.sources.pairs import read_source

logger = logging.getLogger(__name__)


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
    from ip2p import rendering
    from ip2p.dataset.importing import import_rows
    from ip2p.scoring.scorer import load_scorer

    columns = read_columns(arguments.columns, NEEDED, tuple(name for name in OURS if name not in NEEDED))
    with local_copy(url_of(config.out)) as folder:
        config = dataclasses.replace(config, out=folder)
        enter(config)
        source = arguments.source
        rows = read_source(source, columns, split=arguments.split, revision=arguments.revision)
        scorer = load_scorer(config.scoring) if arguments.score else None
        uses.write_config(config, source)
        name = Path(source).name if Path(source).expanduser().exists() else source
        counts = import_rows(config, rows, name, scorer)
        logger.info("imported %s", ", ".join(f"{count} {what}" for what, count in counts.items()))
        rendering.summarise(config)
        dataset.write_dataset(config)
        print(describe_results(config))


def inspect(arguments: OfRun) -> None:
    """Prints the funnel, the scores, the draws, the duplicates and examples of a run."""
    print(inspection.describe(read_run(arguments.folder)))


def plan_costs(arguments: Planning, config: PipelineConfig) -> None:
    """Renders a few candidates, measures, and forecasts what the whole dataset costs."""
    from ip2p import plan

    uses.check_inputs(config, "dataset")
    measured = plan.measure_sample(config, arguments.sample)
    forecast = plan.forecast(measured, config, arguments.triplets)
    print(plan.describe(measured, forecast, config, arguments.devices))
