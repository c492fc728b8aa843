"""What the Prefect UI shows of a run beside its DAG: counts, scores, and where the report lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_table_artifact

from ip2p.config import PipelineConfig
from ip2p.store import read_summary

STAGES = ("prompts", "rendering", "dataset", "training")


def publish_counts(config: PipelineConfig) -> None:
    """A table of every stage's counts and seconds."""
    summary = read_summary(config.out)
    rows = [row for stage in STAGES for row in _numbers(stage, summary.get(stage, {}))]
    create_table_artifact(key="counts", table=rows, description="Counts and seconds per stage")


def publish_scores(config: PipelineConfig) -> None:
    """A table of the editor's scores beside the baselines'."""
    scores = read_summary(config.out).get("evaluation", {})
    editors = {"model": scores, **scores.get("baselines", {})}
    rows = [{"editor": name, **_plain(figures)} for name, figures in editors.items()]
    create_table_artifact(key="scores", table=rows, description="Scores on held-out edits")


def publish_report(path: Path) -> None:
    """A link to the report."""
    create_link_artifact(
        key="report", link=path.resolve().as_uri(), link_text=str(path), description="The run as one page"
    )


def _numbers(stage: str, counts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, value in _plain(counts).items():
        yield {"stage": stage, "what": name, "number": value}


def _plain(figures: dict[str, Any]) -> dict[str, int | float]:
    return {
        name: value for name, value in figures.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
