"""The report of a run: one page that needs no other file, and a few pictures for a README. Never imports torch."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ip2p.config import PipelineConfig, to_dict
from ip2p.report import benchmark, charts, compare, data, editor, format, pictures, sheets
from ip2p.report.reading import RunFacts, read_run
from ip2p.store import RunFolder, write_bytes

logger = logging.getLogger(__name__)

__all__ = ["write_benchmark", "write_comparison", "write_report"]


def write_report(config: PipelineConfig) -> Path:
    """Writes `report/index.html` and the pictures of a run from its folder, and returns the page's path."""
    facts = read_run(config)
    run = RunFolder(config.out)
    pictures.write_strip(run.report / "strip.png", facts.edits, facts.cases, facts.edit_types)
    pictures.write_pairs(run.report / "pairs.png", facts.pairs)
    pictures.write_edit_sheets(run.evaluation, facts.evaluation.parts)
    if curve := charts.tradeoff_chart({format.EDITOR: facts.evaluation.curve}):
        _write(run.report / "curve.svg", "curve.svg.jinja", {"svg": curve.svg})
    page = _write(run.report / "index.html", "report.html.jinja", describe_run(facts))
    logger.info("the report is %s (%.1f MB)", page, page.stat().st_size / 1e6)
    return page


def write_comparison(configs: Sequence[PipelineConfig], path: Path | None = None) -> Path:
    """Writes several runs as one page and returns its path. ValueError if there is nothing to compare."""
    comparison = compare.describe_comparison(configs)
    return _write(path or compare.default_page(configs), "comparison.html.jinja", vars(comparison))


def write_benchmark(folder: Path) -> Path:
    """Writes a finished benchmark as one page and returns its path."""
    return _write(folder / "index.html", "benchmark.html.jinja", vars(benchmark.describe_page(folder)))


def describe_run(facts: RunFacts) -> dict[str, object]:
    """Returns what the page lays out: sections by name, each a sentence if there is nothing to show."""
    cards = (sheets.pairs(facts), sheets.edits(facts), editor.grids(facts))
    return {
        "name": facts.name,
        "headlines": editor.headlines(facts),
        "glance": sheets.glance(facts),
        "funnel": data.funnel(facts),
        "triplets": data.triplets(facts),
        "scores": data.scores(facts),
        "judges": data.judges(facts),
        "shown": data.shown(facts),
        "own_thresholds": sorted(facts.config.filtering.per_edit_type),
        "acceptance": data.acceptance(facts),
        "precision": data.precision(facts),
        "loss": data.loss(facts),
        "quality": editor.quality(facts),
        "extremes": sheets.extremes(facts),
        "guidance": editor.guidance(facts),
        **dict(zip(("pairs", "edits", "grids"), cards, strict=True)),
        "cost": data.cost(facts),
        "settings": editor.setting_rows(to_dict(facts.config).items()),
        "versions": {name: ", then ".join(versions) for name, versions in facts.versions.items()},
        "mixed": [name for name, versions in facts.versions.items() if len(versions) > 1],
        "left_out": sum(section.left_out for section in cards if not isinstance(section, str)),
    }


def _write(path: Path, template: str, values: Mapping[str, object]) -> Path:
    """Writes a page with its script, which the browser runs by its hash alone: no other script can run."""
    environment = Environment(loader=PackageLoader(__name__), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = StrictUndefined
    environment.filters |= {"percent": format.percent, "score": format.score, "count": format.count}
    script = Markup(environment.get_template("filter.js.jinja").render())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template).render(values, script=script, script_hash=f"sha256-{digest}")
    write_bytes(path, page.encode())
    return path
