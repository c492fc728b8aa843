"""The report: one page that stands alone, from whatever a run folder holds."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ip2p import store
from ip2p.config import EvaluationConfig, PipelineConfig
from ip2p.report import write_report
from ip2p.report.data import precisions
from ip2p.report.format import count, percent
from ip2p.report.reading import read_run
from ip2p.report.svg import ticks
from ip2p.scoring import SCORES
from ip2p.scoring.reliability import Reliability, write_reliability
from ip2p.shapes.language import EDIT_TYPES
from ip2p.store.run import update_summary
from tests.example_run import HOSTILE, SCALES, synthetic_config, write_synthetic_run

SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Collects tags, attributes and headings, and checks that what is opened is closed."""

    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole synthetic run with its report."""
    config = write_synthetic_run(synthetic_config(tmp_path_factory.mktemp("runs") / "synthetic"))
    write_report(config)
    return config.out


@pytest.fixture(scope="module")
def html(run_folder: Path) -> str:
    """The report's page."""
    return (run_folder / "report" / "index.html").read_text()


def copied(run_folder: Path, tmp_path: Path) -> PipelineConfig:
    """A copy of the run, to be changed."""
    config = synthetic_config(tmp_path / "run")
    shutil.copytree(run_folder, config.out)
    return config


def _section(html: str, name: str) -> str:
    return html.split(f'<section id="{name}"')[1].split("</section>")[0]


def test_page_is_well_formed(html: str) -> None:
    assert Page(html).open == []


def test_page_asks_nothing_of_the_network(html: str) -> None:
    for tag, attributes in Page(html).tags:
        for name in ("src", "href", "srcset", "data", "action", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value}>"
        assert tag not in ("iframe", "object", "embed", "base")
    assert "url(" not in html and "@import" not in html and "http://" not in html and "https://" not in html


def test_the_browser_is_told_to_run_the_pages_own_script_and_nothing_else(html: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (
        attributes["content"] or ""
        for tag, attributes in Page(html).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_the_page_shows_what_the_prompt_stage_wrote_and_what_it_rejected(html: str) -> None:
    section = _section(html, "triplets")
    for part in ("Kept, by edit type", "Words of the instruction", "Verbs", "Objects", "not parsable", "no change"):
        assert part in section
    assert all(f"<span>{kind}</span>" in section for kind in EDIT_TYPES)
    assert "&lt;script&gt;alert" in section and HOSTILE not in section


def test_every_picture_says_what_it_shows_and_decodes(html: str) -> None:
    pictures = [attributes for tag, attributes in Page(html).tags if tag == "img"]
    assert len(pictures) > 100
    for attributes in pictures:
        assert attributes["alt"]
        content = base64.b64decode((attributes["src"] or "").split(",")[1])
        assert Image.open(io.BytesIO(content)).size == (64, 64)
        assert (attributes["width"], attributes["class"]) == ("128", "pixelated")


def test_every_chart_has_words_for_those_who_do_not_see_it(html: str) -> None:
    charts = [attributes for tag, attributes in Page(html).tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(charts) == 9  # four similarities, precision, loss, success, curves, shares
    assert all(len(attributes["aria-label"] or "") > 20 for attributes in charts)


def test_links_lead_to_sections_that_exist(html: str) -> None:
    tags = Page(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(attributes["href"] or "")[1:] for tag, attributes in tags if tag == "a"} <= set(ids)


def cards_of(html: str, name: str) -> list[dict[str, str | None]]:
    """What the cards of a sheet can be filtered by."""
    return [attributes for tag, attributes in Page(_section(html, name)).tags if attributes.get("class") == "card"]


def test_a_sheet_holds_pairs_of_every_type_verdict_and_outcome_with_what_it_is_filtered_by(html: str) -> None:
    cards = cards_of(html, "pairs")
    assert len(cards) == 240
    assert {card["data-type"] for card in cards} == set(EDIT_TYPES)
    assert {"accepted", "low_direction", "low_image"} <= {card["data-verdict"] for card in cards}
    assert {card["data-oracle"] for card in cards} == {"right", "wrong"}
    assert all(card[f"data-clip_{name}"] for card in cards for name in ("original", "edited", "direction", "image"))


def test_every_choice_of_a_filter_has_as_many_cards_as_it_says(html: str) -> None:
    for name in ("pairs", "edits"):
        cards, section = cards_of(html, name), _section(html, name)
        selects = re.findall(r'<select id="\w+-(\w+)" data-field.*?</select>', section, re.DOTALL)
        for field in selects:
            options = section.split(f'<select id="{name}-{field}"')[1].split("</select>")[0]
            for value, num in re.findall(r'<option value="([^"]+)">.*?\((\d+)\)</option>', options):
                assert sum(card.get(f"data-{field}") == value for card in cards) == int(num) > 0
        assert "type" in selects and "verdict" in selects


def test_ranges_reach_around_every_score(html: str) -> None:
    cards, section = cards_of(html, "pairs"), _section(html, "pairs")
    for name in ("clip_direction", "clip_image"):
        scores = [float(card[f"data-{name}"] or "nan") for card in cards]
        ((low, high),) = re.findall(rf'id="pairs-{name}-low".*?min="([^"]+)" max="([^"]+)"', section)
        assert float(low) <= min(scores) and max(scores) <= float(high)


def test_funnel_tells_counts_and_reasons(html: str) -> None:
    counts = re.findall(r'<span class="count">(.*?)</span>', _section(html, "funnel"))
    assert counts[1:4] == ["130", "120", "240"]
    assert "not parsable <b>5</b>" in _section(html, "funnel")


def test_the_edits_sheet_has_every_outcome_of_every_edit_type(html: str) -> None:
    cards = cards_of(html, "edits")
    assert len(cards) == 140
    assert {card["data-type"] for card in cards} == set(EDIT_TYPES)
    assert {"success", "done", "kept"} <= {card["data-verdict"] for card in cards}
    assert {card["data-no_op"] for card in cards} == {"yes", "no"}


def test_the_worst_edits_fail_and_the_best_succeed(html: str) -> None:
    worst, best = _section(html, "extremes").split("<h3>Worst</h3>")[1].split("<h3>Best</h3>")
    assert worst.count("badge bad") == 8 and best.count("badge good") == 8
    assert "badge good" not in worst and "badge bad" not in best


def test_all_baselines_and_all_measures_are_told(html: str) -> None:
    section = _section(html, "quality")
    for words in (
        "copy the input",
        "untrained",
        "SDEdit 0.5",
        "No change ↓",
        "LPIPS outside mask ↓",
        "SDEdit 0.5: success",
        "+0.210",
    ):
        assert words in section


def test_the_page_says_which_clip_judges_and_when_that_flatters(run_folder: Path, html: str, tmp_path: Path) -> None:
    assert "judged by ViT-B-32/laion2b, not by the one that filtered" in _section(html, "quality")
    config = copied(run_folder, tmp_path)
    figures = store.read_json(config.out / "evaluation/figures.json")
    figures["judge"] = {"model": "ViT-L-14/openai", "same_as_filter": True, "filter": "ViT-L-14/openai"}
    store.write_json(config.out / "evaluation/figures.json", figures)
    assert "flatters" in _section(write_report(config).read_text(), "quality")


def test_grids_have_a_row_per_text_guidance_and_a_column_per_image_guidance(html: str) -> None:
    tables = [rest.split("</table>")[0] for rest in _section(html, "grids").split("<table")[1:]]
    assert len(tables) == 3
    for table in tables:
        heads = re.findall(r'<th scope="(col|row)">([\d.]+)</th>', table)
        assert [value for scope, value in heads if scope == "col"] == [f"{scale:g}" for scale in SCALES]
        assert [value for scope, value in heads if scope == "row"] == ["1.5", "3", "7.5"]
        assert table.count("<img") == 3 * len(SCALES)


def test_curves_have_bands_and_say_what_their_points_stand_for(html: str) -> None:
    section = _section(html, "guidance")
    assert section.count('class="band s0"') == section.count('class="band s1"') == 1
    assert "strength 0.25" in section and "image guidance 2.2" in section


def test_the_page_says_which_versions_a_resumed_run_mixes(run_folder: Path, tmp_path: Path) -> None:
    config = copied(run_folder, tmp_path)

    def page() -> str:
        return write_report(config).read_text()

    store.write_run_config(config.out, {}, None)
    assert "resumed with other versions" not in page()
    environment = store.read_environments(config.out)[-1]
    libraries = environment["libraries"]
    store.write_json(
        config.out / "config.json", {"environment": {**environment, "libraries": {**libraries, "torch": "1"}}}
    )
    store.write_run_config(config.out, {}, None)
    assert "resumed with other versions of torch" in page() and f"1, then {libraries['torch']}" in page()


def test_cost_tells_what_an_accepted_pair_took(html: str, run_folder: Path) -> None:
    table = pq.read_table(run_folder / "candidates" / "part-00000.parquet")
    accepted = pc.sum(table["accepted"]).as_py()
    figures = re.findall(r"<dd><b>(.*?)</b>", _section(html, "cost"))
    assert figures[0] == f"{240 / accepted:.2f}"
    assert figures[1] == f"{240 * 2 * 2 * PipelineConfig(out=run_folder).rendering.num_inference_steps / accepted:.1f}"
    assert figures[2] == f"{184.0 / accepted:#.3g} s"


def test_a_prompt_cannot_smuggle_markup_into_the_page(run_folder: Path, tmp_path: Path) -> None:
    config = replace(synthetic_config(tmp_path / "hostile"))
    table = pq.read_table(run_folder / "pairs" / "part-00000.parquet").slice(0, 2)
    for name in ("edit_prompt", "original_prompt", "edit_type", "reason"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array([f'"{HOSTILE}'] * 2))
    store.write_shard(store.RunFolder(config.out).shard("pairs", 0), table, fingerprint="x", seconds=0.0)
    store.write_shard(store.RunFolder(config.out).shard("candidates", 0), table, fingerprint="x", seconds=0.0)
    page = write_report(config).read_text()
    assert HOSTILE not in page and "&lt;script&gt;alert" in page and page.count("<script") == 1


def test_the_oracles_share_is_counted_from_its_verdicts_if_the_summary_lacks_it(
    run_folder: Path, tmp_path: Path
) -> None:
    config = copied(run_folder, tmp_path)
    before = precisions(read_run(config))
    summary = store.read_json(config.out / "summary.json")
    store.write_json(config.out / "summary.json", summary | {"dataset": {"seconds": 2.1}})
    assert before[0] is not None and before[1] is not None
    assert precisions(read_run(config)) == before


def test_report_of_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    page = write_report(PipelineConfig(out=tmp_path / "nothing")).read_text()
    assert Page(page).open == []
    assert page.count('class="missing"') == 13


@pytest.mark.parametrize(
    "part",
    [
        "triplets",
        "candidates",
        "pairs",
        "training",
        "evaluation",
        "summary.json",
        "evaluation/cases.parquet",
        "evaluation/oracle",
        "evaluation/grids.parquet",
    ],
)
@pytest.mark.slow
def test_report_goes_on_without_any_one_part(part: str, run_folder: Path, tmp_path: Path) -> None:
    config = copied(run_folder, tmp_path)
    path = config.out / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert Page(write_report(config).read_text()).open == []


@pytest.mark.parametrize(
    "part",
    [
        "candidates/part-00000.parquet",
        "pairs/part-00000.parquet",
        "summary.json",
        "judges.json",
        "evaluation/figures.json",
        "evaluation/grids.parquet",
    ],
)
def test_report_goes_on_where_a_file_is_broken(part: str, run_folder: Path, tmp_path: Path) -> None:
    config = copied(run_folder, tmp_path)
    (config.out / part).write_bytes(b"broken")
    assert Page(write_report(config).read_text()).open == []


def test_the_judges_that_were_tried_stand_beside_the_scores(run_folder: Path, html: str, tmp_path: Path) -> None:
    assert "How reliable the judges are" not in html
    config = copied(run_folder, tmp_path)
    tried = {
        "clip_direction": Reliability(auroc=0.985, low=0.982, high=0.988, n=1400),
        "vlm_followed": Reliability(auroc=0.75, low=0.7, high=0.8, n=90, unjudged=10),
    }
    write_reliability(config.out, tried)
    page = write_report(config).read_text()
    assert Page(page).open == []
    table = _section(page, "scores").split("How reliable the judges are")[1]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)", row) for row in table.split("<tr>")[2:]]
    assert rows == [
        [SCORES["direction"].title, "0.985", "0.982–0.988", count(1400)],
        [SCORES["vlm_followed"].title, "0.750", "0.700–0.800", "90"],
    ]


def test_the_page_says_which_instruction_the_accepted_pairs_show(run_folder: Path, html: str, tmp_path: Path) -> None:
    title = "Which instruction the accepted pairs show"
    assert title not in html
    config = copied(run_folder, tmp_path)
    update_summary(config.out, "rendering", {"shown": {"rewritten": 30, "as_written": 9, "unnamed": 1}})
    page = write_report(config).read_text()
    assert Page(page).open == []
    table = _section(page, "scores").split(title)[1]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)", row) for row in table.split("<tr>")[2:]]
    assert rows == [
        ["another than the written one", "30", percent(0.75)],
        ["the written one", "9", percent(0.225)],
        ["none that the judge could name", "1", percent(0.025)],
    ]


def test_pictures_for_the_readme_are_written(run_folder: Path) -> None:
    for name in ("strip", "pairs"):
        with Image.open(run_folder / "report" / f"{name}.png") as image:
            assert image.width > 600 and np.asarray(image.convert("L")).std() > 10


def test_the_curve_for_the_readme_stands_alone_as_svg(run_folder: Path) -> None:
    curve = ElementTree.parse(run_folder / "report" / "curve.svg").getroot()
    assert int(curve.get("width", 0)) > 600
    marks = [group for group in curve.iter(f"{SVG}g") if group.get("class") == "mark s0"]
    assert len(marks) == len(SCALES)
    styles = "".join(style.text or "" for style in curve.iter(f"{SVG}style"))
    used = {name for element in curve.iter() for name in (element.get("class") or "").split()}
    assert {"band", "series", "point-label"} <= used and all(
        f".{name}" in styles for name in ("band", "series", "mark")
    )
    assert all(f"--{name}:" in styles for name in re.findall(r"var\(--(\w+)\)", styles))


def test_a_plain_sheet_per_edit_type_is_written_and_left_alone_until_the_scores_are_newer(
    run_folder: Path, tmp_path: Path
) -> None:
    config = copied(run_folder, tmp_path)
    folder = store.RunFolder(config.out).evaluation
    write_report(config)
    sheets = sorted((folder / "images").glob("*.png"))
    assert [path.name for path in sheets] == sorted(f"model-{kind}.png" for kind in EDIT_TYPES)
    with Image.open(sheets[0]) as image:
        assert image.size == (6 + 4 * (2 * 64 + 6), 6 + 4 * (64 + 6))  # 16 edits, before beside after
    first = [path.stat().st_mtime_ns for path in sheets]
    write_report(config)
    assert [path.stat().st_mtime_ns for path in sheets] == first
    (folder / "scores.parquet").touch()
    write_report(config)
    assert all(path.stat().st_mtime_ns > time for path, time in zip(sheets, first, strict=True))


def test_report_without_rejected_images_says_how_to_keep_them(run_folder: Path, tmp_path: Path) -> None:
    import pyarrow.compute as pc

    config = copied(run_folder, tmp_path)
    path = store.RunFolder(config.out).shard("pairs", 0)
    table = pq.read_table(path)
    store.write_shard(path, table.filter(pc.field("accepted")), fingerprint="x", seconds=0.0)
    assert "--rendering.keep-rejected-images" in _section(write_report(config).read_text(), "pairs")


def test_ticks_are_round_and_inside() -> None:
    assert ticks((0.0, 1.0), 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks((-0.13, 0.42), 5) == pytest.approx([0.0, 0.2, 0.4])


def test_report_never_imports_torch() -> None:
    code = "import ip2p.report, ip2p.evaluation, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_of_the_run_are_shown(html: str) -> None:
    assert "filtering.thresholds.direction" in _section(html, "settings")
    assert "evaluation.num_edits" in html and str(EvaluationConfig().num_edits) in html
