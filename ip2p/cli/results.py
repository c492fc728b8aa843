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
    prompts, rendering, scores = (summary.get(name, {}) for name in ("prompts", "rendering", "evaluation"))
    if prompts:
        yield "triplets", f"{prompts.get('kept', 0)} kept of {prompts.get('generations', 0)}"
    if rendering:
        precision = _precision(summary.get("dataset", {}))
        yield "pairs", f"{rendering.get('accepted', 0)} accepted of {rendering.get('candidates', 0)}{precision}"
    if scores.get("success") is not None:
        parts = f"done {scores['done']:.3f}, kept {scores['kept']:.3f}"
        yield "success", f"{scores['success']:.3f} ({parts}){_baselines(scores)}"
    for name, path in (("dataset", folder.dataset), ("model", folder.model), ("report", folder.report / "index.html")):
        if path.exists():
            yield name, str(path)
    yield "summary", str(folder.root / "summary.json")


def _precision(dataset: dict[str, Any]) -> str:
    precision, of_all = dataset.get("oracle_precision"), dataset.get("oracle_precision_all")
    if precision is None:
        return ""
    return f"; right by the oracle: {precision:.3f}" + ("" if of_all is None else f", of all candidates {of_all:.3f}")


def _baselines(scores: dict[str, Any]) -> str:
    rates = {name: figures.get("success") for name, figures in scores.get("baselines", {}).items()}
    texts = [f"{name} {rate:.3f}" for name, rate in rates.items() if rate is not None]
    return f"; {', '.join(texts)}" if texts else ""
