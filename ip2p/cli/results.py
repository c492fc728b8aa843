"""Formats what a command prints at its end: the headline figures and the paths of its results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ip2p.config import PipelineConfig
from ip2p.store import RunFolder, read_summary


def describe_results(config: PipelineConfig) -> str:
    """Lists figures of the stages that have run, and the paths of what they made."""
    return "\n".join(f"  {name:<11} {value}" for name, value in _lines(config))


def _lines(config: PipelineConfig) -> Iterator[tuple[str, str]]:
    folder, summary = RunFolder(config.out), read_summary(config.out)
    prompts, rendering, dataset, scores = (
        summary.get(name, {}) for name in ("prompts", "rendering", "dataset", "evaluation")
    )
    if prompts:
        yield "triplets", f"{prompts.get('kept', 0)} kept of {prompts.get('generations', 0)}"
    if rendering:
        yield (
            "pairs",
            f"{rendering.get('accepted', 0)} accepted of {rendering.get('candidates', 0)}{_precision(dataset)}",
        )
    if scores.get("success") is not None:
        yield (
            "success",
            f"{scores['success']:.3f} (done {scores['done']:.3f}, kept {scores['kept']:.3f}){_baselines(scores)}",
        )
    if folder.dataset.exists():
        yield "dataset", str(folder.dataset)
    if folder.model.exists():
        yield "model", str(folder.model)
    if (folder.report / "index.html").exists():
        yield "report", str(folder.report / "index.html")
    yield "summary", str(folder.root / "summary.json")


def _precision(dataset: dict[str, Any]) -> str:
    right, right_of_all = dataset.get("oracle_precision"), dataset.get("oracle_precision_all")
    if right is None:
        return ""
    return f"; right by the oracle: {right:.3f}" + (
        f", of all candidates {right_of_all:.3f}" if right_of_all is not None else ""
    )


def _baselines(scores: dict[str, Any]) -> str:
    rates = {name: figures.get("success") for name, figures in scores.get("baselines", {}).items()}
    texts = [f"{name} {rate:.3f}" for name, rate in rates.items() if rate is not None]
    return f"; {', '.join(texts)}" if texts else ""
