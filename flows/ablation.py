"""The paper's ablations of a finished run: a pipeline for each variant, one after another, and a page on them all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from prefect import flow

from flows import tasks
from flows.pipeline import pipeline_flow
from flows.runners import with_runner
from ip2p import ablation, store, uses
from ip2p.config import PipelineConfig

logger = logging.getLogger("ip2p.ablation")


@flow(name="ablation")
def ablation_flow(config: PipelineConfig, run: Path, variants: Sequence[str] = tuple(ablation.VARIANTS)) -> None:
    """Trains and evaluates the variants of a run below `config.out` and lays them side by side."""
    made = []
    for variant in ablation.variants_of(run, config, variants):
        build_variant(variant)
        made.append(variant.config)
    tasks.publish_report(tasks.compare_runs(made, config.out / "index.html"))


def build_variant(variant: ablation.Variant) -> None:
    """One variant's pipeline, unless it has been through it."""
    name, config = variant.name, variant.config

    def work() -> None:
        logger.info("%s: started in %s", name, config.out)
        with_runner(pipeline_flow, config.runner).with_options(flow_run_name=name)(config)

    store.hold(config.out)
    if not (config.out / "config.json").exists():
        ablation.take_over(variant.source, config.out, editor=name == "full")
    if not uses.carry_out(config, "pipeline", work):
        logger.info("%s is done already", name)
