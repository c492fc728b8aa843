"""The report of a run: one page that needs nothing beside it, and a few pictures for a README. Never imports torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ip2p.config import PipelineConfig
from ip2p.evaluation.report import comparing, sections, strips
from ip2p.evaluation.report.reading import RunFacts, read_run
from ip2p.store import RunFolder, write_atomic

logger = logging.getLogger(__name__)

__all__ = ["write_comparison", "write_report"]


def write_report(config: PipelineConfig) -> Path:
    """Writes `report/index.html` and its PNGs from what lies in the run folder, and returns the page's path."""
    facts = read_run(config)
    folder = RunFolder(config.out).report
    strips.write_strip(folder / "strip.png", facts)
    strips.write_pairs(folder / "pairs.png", facts)
    strips.write_curve(folder / "curve.png", facts)
    page = render_page(facts).encode()
    write_atomic(folder / "index.html", lambda file: _write(file, page))
    logger.info("the report is %s (%.1f MB)", folder / "index.html", len(page) / 1e6)
    return folder / "index.html"


def _write(file: Any, content: bytes) -> None:
    file.write(content)


def write_comparison(configs: Sequence[PipelineConfig], path: Path | None = None) -> Path:
    """Writes several runs as one page and returns its path. ValueError where there is nothing to compare."""
    place = path or comparing.default_page(configs)
    page = _template("comparison.html.jinja").render(comparing.describe_comparison(configs)).encode()
    write_atomic(place, lambda file: _write(file, page))
    return place


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader(__name__, "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.undefined = StrictUndefined
    environment.filters |= {"percent": percent, "score": score, "count": count}
    return environment.get_template(name)


def render_page(facts: RunFacts) -> str:
    """The whole page as text."""
    return _template("template.html.jinja").render(
        name=facts.name,
        headlines=sections.headlines(facts),
        funnel=sections.funnel(facts),
        triplets=sections.triplets(facts),
        scores=sections.scores(facts),
        acceptance=sections.acceptance(facts),
        accepted=sections.pairs(facts, accepted=True),
        rejected=sections.pairs(facts, accepted=False),
        precision=sections.precision(facts),
        loss=sections.loss(facts),
        oracle=sections.oracle(facts),
        edits=sections.edits(facts),
        guidance=sections.guidance(facts),
        times=sections.times(facts),
        settings=sections.setting_rows(facts.config),
        versions=facts.versions,
    )


def percent(value: float) -> str:
    """A share in whole percent, with a decimal near the ends."""
    near_end = 0 < value < 0.01 or 0.99 < value < 1
    return f"{100 * value:.1f} %" if near_end else f"{100 * value:.0f} %"


def score(value: float) -> str:
    """A similarity with three decimals and a true minus sign."""
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else "–"


def count(value: int) -> str:
    """A number with thousands apart."""
    return f"{value:,}".replace(",", "\u202f")
