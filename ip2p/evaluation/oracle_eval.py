"""The evaluation of a run: which parts are missing, and what the finished ones say together."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from ip2p import store
from ip2p.config import PipelineConfig, fingerprint
from ip2p.evaluation import metrics
from ip2p.evaluation.cases import cases_table, fingerprint_case, hold_out_cases
from ip2p.evaluation.domain import Domain, EditCase, Pixels, load_domain
from ip2p.evaluation.editors import fingerprint_editor, load_named_editor, trained_model
from ip2p.evaluation.parts import Part, Scorer, fingerprint_part, plan_parts, write_part
from ip2p.evaluation.sheets import write_sheets
from ip2p.records import PairScores

logger = logging.getLogger(__name__)


def evaluate(
    config: PipelineConfig, *, data: str | Path | None = None, progress: Callable[[float], object] = lambda share: None
) -> dict[str, Any]:
    """Edits the held-out cases with the trained editor and its baselines and returns the figures.

    Without a domain the cases are the test split of `evaluation.data`, of `data` or of the run's own dataset, the
    first that is named, judged by CLIP alone. `progress` is told the share of the edits that are done.
    """
    data = config.evaluation.data or data
    domain = load_domain(config.evaluation.domain) if config.evaluation.domain else None
    trained_model(config)
    cases = hold_out_cases(config, domain, Path(data).expanduser() if data else None)
    if not cases:
        reason = "there are no held-out edits: the dataset has no readable test split and evaluation.domain is not set"
        logger.warning("skipped the evaluation: %s", reason)
        store.write_json(store.RunFolder(config.out).evaluation / "figures.json", {"skipped": reason})
        return {"skipped": reason}
    sidecars = _write_missing_parts(config, domain, cases, progress)
    records = _collect(config, cases, sidecars)
    figures = _figures(records, domain.edit_types() if domain else ())
    figures["seconds"] = round(sum(sidecar.seconds for sidecar in sidecars.values()), 3)
    figures["parts"] = [part.name for part in sidecars]
    store.write_json(store.RunFolder(config.out).evaluation / "figures.json", figures)
    return figures


def _figures(records: Sequence[metrics.Record], edit_types: Sequence[str]) -> dict[str, Any]:
    def of(model: str) -> list[metrics.Record]:
        return [record for record in records if record["model"] == model and not record["sweep"]]

    baselines = {name: metrics.summarise(of(name), edit_types) for name in ("copy", "untrained")}
    swept = metrics.curve([record for record in records if record["sweep"]])
    return {**metrics.summarise(of("model"), edit_types), "baselines": baselines, "curve": swept}


def _write_missing_parts(
    config: PipelineConfig, domain: Domain | None, cases: Sequence[EditCase], progress: Callable[[float], object]
) -> dict[Part, store.Sidecar]:
    hashes = [fingerprint_case(case) for case in cases]
    plan = plan_parts(config, cases)
    editors = {name: fingerprint_editor(config, name) for name in {part.model for part in plan}}
    prints = {part: fingerprint_part(config, part, hashes, editors[part.model]) for part in plan}
    sidecars = {part: store.finished(part.path(config), prints[part]) for part in plan}
    todo = [part for part, sidecar in sidecars.items() if sidecar is None]
    if len(todo) < len(plan):
        logger.info("%d of %d evaluation parts were there already", len(plan) - len(todo), len(plan))
    load = functools.cache(functools.partial(load_named_editor, config))
    load_scorer = functools.cache(functools.partial(_load_scorer, config))
    total, num_done = sum(len(part.cases) for part in todo), 0
    with tqdm(total=total, desc="evaluate", unit="edit", disable=None if todo else True) as bar:

        def count(num: int) -> None:
            nonlocal num_done
            num_done += num
            bar.update(num)
            progress(num_done / total)

        for part in todo:
            made = write_part(
                config,
                part,
                cases,
                fingerprint=prints[part],
                editor=load(part.model),
                score=load_scorer(),
                domain=domain,
                progress=count,
            )
            logger.info("%s: %d edits in %.1f s", part.name, made.rows, made.seconds)
            sidecars[part] = made
    return {part: sidecar for part, sidecar in sidecars.items() if sidecar is not None}


def _load_scorer(config: PipelineConfig) -> Scorer:
    from ip2p.filtering.scorer import load_pair_scorer

    scorer = load_pair_scorer(config.scoring)

    def score(cases: Sequence[EditCase], images: Sequence[Pixels]) -> list[PairScores]:
        before = [Image.fromarray(case.original_image) for case in cases]
        return scorer.score([case.triplet for case in cases], before, [Image.fromarray(image) for image in images])

    return score


def _collect(
    config: PipelineConfig, cases: Sequence[EditCase], sidecars: dict[Part, store.Sidecar]
) -> list[dict[str, Any]]:
    """Gathers the parts into scores.parquet, the cases into cases.parquet and the first edits into sheets."""
    folder = store.RunFolder(config.out).evaluation
    asked = fingerprint([(part.name, sidecar.sha256) for part, sidecar in sidecars.items()])
    if store.finished(folder / "scores.parquet", asked) is None:
        narrow = [pq.read_table(part.path(config)).drop_columns(["edited_image"]) for part in sidecars]
        store.write_shard(folder / "cases.parquet", cases_table(cases), fingerprint=asked, seconds=0.0)
        write_sheets(folder / "images", cases, [part.path(config) for part in sidecars if not part.sweep])
        store.write_shard(folder / "scores.parquet", pa.concat_tables(narrow), fingerprint=asked, seconds=0.0)
    return list(pq.read_table(folder / "scores.parquet").to_pylist())
