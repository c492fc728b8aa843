"""The paper's ablations of a finished run: a pipeline for each variant, one after another, and a page on them all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from flows import tasks
from flows.handover import use_flow
from flows.runners import flow_of
from ip2p import ablation, store, uses
from ip2p.config import PipelineConfig

logger = logging.getLogger("ip2p.ablation")


@use_flow("ablation")
def ablation_flow(config: PipelineConfig, run: Path, variants: Sequence[str] = tuple(ablation.VARIANTS)) -> None:
    """Trains and evaluates the variants of a run below `config.out` and lays them side by side."""
    configs = []
    for variant in ablation.variants_of(run, config, variants):
        build_variant(variant)
        configs.append(variant.config)
    page = tasks.compare_runs(configs, config.out / "index.html")
    with tasks.for_looking_at("the page of the variants"):
        tasks.publish_report(page)


def build_variant(variant: ablation.Variant) -> None:
    """Runs one variant's pipeline unless it is done."""
    name, config = variant.name, variant.config

    def start() -> None:
        logger.info("%s: started in %s", name, config.out)
        flow_of("pipeline", config.runner).with_options(flow_run_name=name)(config)

    store.hold(config.out)
    if not (config.out / "config.json").exists():
        ablation.take_over(variant.source, config.out, editor=name == "full")
    if not uses.carry_out(config, "pipeline", start):
        logger.info("%s is done already", name)
