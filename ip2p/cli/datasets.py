"""`ip2p dataset import`, `ip2p dataset inspect` and `ip2p plan`: what goes on before and after a dataset is made."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from ip2p.cli.arguments import parse, parse_new_run, take_option, take_run_folder, take_whole, wants_help
from ip2p.cli.results import describe_results
from ip2p.config import PipelineConfig
from ip2p.console import end_on_signals, log_to_file

logger = logging.getLogger(__name__)

IMPORT_USAGE = (
    "ip2p dataset import SOURCE OUT [--columns ours=theirs,…] [--split train] [--revision R] [--score yes] "
    "[--stage.knob VALUE …]. SOURCE is a folder of the original software, an image folder, parquet files or a hub id."
)


def enter(config: PipelineConfig) -> None:
    """From here on the command works inside the run folder, and no other does."""
    from ip2p.store import hold

    hold(config.out)
    log_to_file(config.out / "run.log")
    end_on_signals()


def import_pairs(words: list[str]) -> None:
    """Other people's pairs to a run folder and a dataset of ours."""
    columns, split = take_option(words, "columns"), take_option(words, "split") or "train"
    revision, score = take_option(words, "revision"), take_option(words, "score")
    places = [words.pop(0) for _ in range(2) if words and not words[0].startswith("-")]
    if len(places) < 2 and not wants_help(words):
        raise ValueError(f"`ip2p dataset import` needs a source and a folder. Write: {IMPORT_USAGE}")
    base = PipelineConfig()
    rendering = dataclasses.replace(base.rendering, num_candidates=1, keep_rejected_images=True)
    base = dataclasses.replace(base, rendering=rendering, out=Path(places[1] if places else "runs/imported"))
    config = parse(PipelineConfig, words, prog="ip2p dataset import", description=IMPORT_USAGE, default=base)
    from ip2p import dataset, plan, store
    from ip2p import rendering as rendering_stage
    from ip2p.dataset.importing import import_rows
    from ip2p.dataset.sources import read_source

    enter(config)
    rows = read_source(places[0], read_mapping(columns), split=split, revision=revision)
    scorer = None
    if score in ("yes", "true", "1"):
        from ip2p.filtering.scorer import load_scorer

        scorer = load_scorer(config.scoring)
    plan.write_config(config, places[0])
    name = Path(places[0]).name if Path(places[0]).expanduser().exists() else places[0]
    counts = import_rows(config, rows, name, scorer)
    logger.info("imported %s", ", ".join(f"{count} {what}" for what, count in counts.items()))
    store.update_summary(config.out, "prompts", counts)
    store.update_summary(config.out, "rendering", rendering_stage.summarise(config))
    store.update_summary(config.out, "dataset", dataset.write_dataset(config))
    print(describe_results(config))


def read_mapping(text: str | None) -> dict[str, str] | None:
    """`original_image=a,edited_image=b` to a mapping. ValueError where a part has no `=` or is no column of ours."""
    if text is None:
        return None
    from ip2p.dataset.read import NEEDED, OPTIONAL

    found = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    wrong = [part for part in text.split(",") if "=" not in part] + [name for name in found if name not in KNOWN]
    missing = [name for name in NEEDED if name not in found]
    if wrong or missing:
        raise ValueError(
            f"--columns takes ours=theirs,… with {', '.join(NEEDED)} and, where there are, {', '.join(OPTIONAL)}; "
            f"got {text}."
        )
    return found


KNOWN = ("original_image", "edited_image", "original_prompt", "edit_prompt", "edited_prompt", "edit_type", "group")
"""Columns that an import takes."""


def inspect(words: list[str]) -> None:
    """The funnel, the scores, the draws, the duplicates and examples of a run, in the terminal."""
    folder = take_run_folder(words, "dataset inspect")
    if folder is None:
        print("ip2p dataset inspect RUN")
        return
    if words:
        raise ValueError(f"`ip2p dataset inspect` takes a run folder alone, got {words[0]} too.")
    from ip2p.config_file import read_run
    from ip2p.dataset.inspection import describe

    print(describe(read_run(folder)))


def plan_costs(words: list[str]) -> None:
    """Renders a few candidates, measures, and says what the whole dataset takes."""
    triplets, sample, devices = (take_whole(words, name) for name in ("triplets", "sample", "devices"))
    config = parse_new_run(words, "plan", options=" [--triplets N] [--sample CAPTIONS] [--devices K]")
    from ip2p import forecast, plan

    plan.check_inputs(config, "dataset")
    measured = forecast.measure_sample(config, sample or 20)
    found = forecast.forecast(measured, config, triplets)
    print(forecast.describe(measured, found, config, devices or 1))
