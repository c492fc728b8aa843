"""The report of a run: one page that needs nothing beside it, and a few pictures for a README. Never imports torch."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ip2p.config import PipelineConfig
from ip2p.report import compare, data, edit_sheets, editor, format, pictures, sheets
from ip2p.report.facts import RunFacts, read_run
from ip2p.store import RunFolder, write_atomic

logger = logging.getLogger(__name__)

__all__ = ["write_benchmark", "write_comparison", "write_report"]


def write_report(config: PipelineConfig) -> Path:
    """Writes `report/index.html` and the PNGs of a run from its folder, and returns the page's path."""
    facts = read_run(config)
    folder = RunFolder(config.out).report
    pictures.write_strip(folder / "strip.png", facts)
    pictures.write_pairs(folder / "pairs.png", facts)
    pictures.write_curve(folder / "curve.png", facts)
    edit_sheets.write_edit_sheets(RunFolder(config.out).evaluation, facts.figures)
    page = render_page(facts).encode()
    write_atomic(folder / "index.html", lambda file: _write(file, page))
    logger.info("the report is %s (%.1f MB)", folder / "index.html", len(page) / 1e6)
    return folder / "index.html"


def _write(file: Any, content: bytes) -> None:
    file.write(content)


def write_comparison(configs: Sequence[PipelineConfig], path: Path | None = None) -> Path:
    """Writes several runs as one page and returns its path. ValueError where there is nothing to compare."""
    place = path or compare.default_page(configs)
    page = _render("comparison.html.jinja", compare.describe_comparison(configs)).encode()
    write_atomic(place, lambda file: _write(file, page))
    return place


def write_benchmark(folder: Path) -> Path:
    """Writes a finished benchmark as one page and returns its path."""
    page = _render("benchmark.html.jinja", compare.describe_page(folder)).encode()
    write_atomic(folder / "index.html", lambda file: _write(file, page))
    return folder / "index.html"


def render_page(facts: RunFacts) -> str:
    """The whole page as text."""
    sections: dict[str, Any] = {
        "headlines": editor.headlines(facts),
        "glance": sheets.glance(facts),
        "funnel": data.funnel(facts),
        "triplets": data.triplets(facts),
        "scores": data.scores(facts),
        "acceptance": data.acceptance(facts),
        "pairs": sheets.pairs(facts),
        "precision": data.precision(facts),
        "loss": data.loss(facts),
        "quality": editor.quality(facts),
        "extremes": sheets.extremes(facts),
        "edits": sheets.edits(facts),
        "guidance": editor.guidance(facts),
        "grids": editor.grids(facts),
        "cost": data.cost(facts),
        "settings": editor.setting_rows(facts.config),
        "versions": facts.versions,
    }
    left_out = sum(int(sections[name].get("left_out", 0)) for name in ("pairs", "edits", "grids"))
    return _render("template.html.jinja", {"name": facts.name, "left_out": left_out, **sections})


def _render(template: str, values: Mapping[str, Any]) -> str:
    """A page with its script, which the browser runs for its hash alone: whatever else slips in stays dead."""
    environment = Environment(loader=PackageLoader(__name__), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = StrictUndefined
    environment.filters |= {"percent": format.percent, "score": format.score, "count": format.count}
    script = Markup(environment.get_template("filter.js.jinja").render())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(values, script=script, script_hash=f"sha256-{digest}")
