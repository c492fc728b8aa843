"""The report: one page that stands alone, from whatever a run folder holds."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ip2p import store
from ip2p.config import EvaluationConfig, FilteringConfig, PipelineConfig, Thresholds
from ip2p.evaluation import metrics, parts
from ip2p.evaluation.cases import IMAGE_TYPE, cases_table, encode_png
from ip2p.evaluation.domain import EditCase
from ip2p.evaluation.oracle_precision import SCHEMA as ORACLE_SCHEMA
from ip2p.evaluation.report import write_report
from ip2p.evaluation.report.cards import choose_edits
from ip2p.evaluation.report.charts import ticks
from ip2p.filtering import judge_table
from ip2p.prompts import Generation, triplets_table
from ip2p.prompts.parse import Reason
from ip2p.records import Candidate, EditTriplet, PairScores, RenderSpec, ScoredCandidate, Verdict
from ip2p.rendering.table import candidates_table
from ip2p.shapes.language import EDIT_TYPES, SceneEdit, draw_caption, draw_edit
from ip2p.shapes.scene import render

HOSTILE = "<script>alert('x')</script>"


def synthetic_config(out: Path) -> PipelineConfig:
    """A run of 120 triplets with two candidates each; its thresholds reject about half."""
    thresholds = Thresholds(original=0.2, edited=0.2, direction=0.15, image=0.6)
    return PipelineConfig(out=out, filtering=FilteringConfig(thresholds=thresholds, max_pairs_per_triplet=1))


def write_synthetic_run(config: PipelineConfig) -> PipelineConfig:
    """Writes every part of a run folder from drawn scenes and invented scores."""
    rng, run = random.Random(0), store.RunFolder(config.out)
    edits = [draw_edit(rng, edit_type=EDIT_TYPES[index % 7]) for index in range(120)]
    triplets = [_triplet(rng, edit) for edit in edits]
    triplets[0] = replace(triplets[0], edit_prompt=HOSTILE)
    _write_triplets(run, triplets)
    _write_candidates(config, run, rng, edits, triplets)
    _write_training(run, rng)
    _write_evaluation(config, run, rng)
    stages = {"prompts": 41.2, "rendering": 184.0, "dataset": 2.1, "training": 372.5, "evaluation": 96.0}
    store.write_json(run.root / "summary.json", {stage: {"seconds": seconds} for stage, seconds in stages.items()})
    return config


def _triplet(rng: random.Random, edit: SceneEdit) -> EditTriplet:
    return EditTriplet(
        original_prompt=draw_caption(rng, edit.original),
        edit_prompt=edit.edit_prompt,
        edited_prompt=draw_caption(rng, edit.edited),
        edit_type=edit.edit_type,
    )


def _write_triplets(run: store.RunFolder, triplets: list[EditTriplet]) -> None:
    rows = [Generation(each.original_prompt, "", each, "") for each in triplets]
    lost: list[Reason] = ["unparsable"] * 5 + ["no_op"] * 3 + ["duplicate"] * 2
    rows += [Generation(f"caption {index}", f"{HOSTILE} {index}", None, reason) for index, reason in enumerate(lost)]
    store.write_shard(run.shard("triplets", 0), triplets_table(rows), fingerprint="x", seconds=4.0)


def _write_candidates(
    config: PipelineConfig,
    run: store.RunFolder,
    rng: random.Random,
    edits: list[SceneEdit],
    triplets: list[EditTriplet],
) -> None:
    scored, pictures = [], []
    for edit, triplet in zip(edits, triplets, strict=True):
        for number in range(2):
            good = rng.random() < 0.7
            step = rng.gauss(0.45, 0.15) if good else rng.gauss(0.12, 0.12)
            same = rng.gauss(0.85, 0.06) if good else rng.gauss(0.65, 0.12)
            found = PairScores(original=rng.gauss(0.3, 0.04), edited=rng.gauss(0.28, 0.05), direction=step, image=same)
            spec = RenderSpec(triplet_id=triplet.id, candidate=number, seed=number, guidance_scale=3.0, p2p=0.5)
            scored.append(
                ScoredCandidate(candidate=Candidate(triplet=triplet, spec=spec), scores=found, verdict=Verdict())
            )
            pictures.append((render(edit.original), render(edit.edited if good else edit.original), good))
    rows = judge_table(candidates_table(scored), config.filtering).to_pylist()
    store.write_shard(run.shard("candidates", 0), pa.Table.from_pylist(rows), fingerprint="x", seconds=9.0)
    table = pa.Table.from_pylist(rows)
    for side, name in enumerate(("original_image", "edited_image")):
        cells = [{"bytes": encode_png(some[side]), "path": None} for some in pictures]
        table = table.append_column(name, pa.array(cells, IMAGE_TYPE))
    store.write_shard(run.shard("pairs", 0), table, fingerprint="x", seconds=0.0)
    verdicts = [
        {name: row[name] for name in ("triplet_id", "candidate", "edit_type", "accepted")}
        | {"success": good, "done": good, "kept": True, "legible": True}
        for row, (_, _, good) in zip(rows, pictures, strict=True)
    ]
    judged = pa.Table.from_pylist(verdicts, schema=ORACLE_SCHEMA)
    store.write_shard(run.evaluation / "oracle" / "part-00000.parquet", judged, fingerprint="x", seconds=0.0)


def _write_training(run: store.RunFolder, rng: random.Random) -> None:
    run.training.mkdir(parents=True, exist_ok=True)
    losses = {step: 0.05 + 0.3 * 0.99 ** (step / 3) + abs(rng.gauss(0, 0.015)) for step in range(10, 1210, 10)}
    lines = [{"step": step, "loss": loss} for step, loss in losses.items()]
    (run.training / "loss.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 12')


def _write_evaluation(config: PipelineConfig, run: store.RunFolder, rng: random.Random) -> None:
    edits = [draw_edit(rng, edit_type=EDIT_TYPES[index % 7]) for index in range(140)]
    cases = [
        EditCase(
            original_image=render(edit.original),
            edit_prompt=edit.edit_prompt,
            original_prompt=draw_caption(rng, edit.original),
            edited_prompt=draw_caption(rng, edit.edited),
            edit_type=edit.edit_type,
            payload=edit,
        )
        for edit in edits
    ]
    records: list[dict[str, Any]] = []
    names = []
    for part in parts.plan_parts(config, cases):
        rows = [_record(config, part, cases[number], number, rng) for number in part.cases]
        table = pa.Table.from_pylist(rows, schema=parts.SCHEMA)
        store.write_shard(part.path(config), table, fingerprint="x", seconds=1.0)
        records += rows
        names.append(part.name)
    store.write_shard(run.evaluation / "cases.parquet", cases_table(cases), fingerprint="x", seconds=0.0)

    def of(model: str) -> dict[str, Any]:
        some = [record for record in records if record["model"] == model and not record["sweep"]]
        return metrics.summarise(some, EDIT_TYPES)

    swept = metrics.curve([record for record in records if record["sweep"]])
    figures = {**of("model"), "baselines": {name: of(name) for name in ("copy", "untrained")}, "curve": swept}
    store.write_json(run.evaluation / "figures.json", {**figures, "parts": names, "seconds": 96.0})


def _record(
    config: PipelineConfig, part: parts.Part, case: EditCase, number: int, rng: random.Random
) -> dict[str, Any]:
    chance = {"model": 0.9, "copy": 0.0, "untrained": 0.03}[part.model] - 0.02 * EDIT_TYPES.index(case.edit_type)
    more = part.image_guidance_scale - 1.5
    done, kept = rng.random() < chance - 0.25 * more, part.model == "copy" or rng.random() < 0.85 + 0.15 * more
    image = render(case.payload.edited if done else case.payload.original)
    return {
        "model": part.model,
        "sweep": part.sweep,
        "case": number,
        "seed": number,
        "edit_type": case.edit_type,
        "original_prompt": case.original_prompt,
        "edit_prompt": case.edit_prompt,
        "edited_prompt": case.edited_prompt,
        "guidance_scale": config.evaluation.guidance_scale,
        "image_guidance_scale": part.image_guidance_scale,
        "success": done and kept,
        "done": done,
        "kept": kept,
        "legible": True,
        "clip_original": 0.3,
        "clip_edited": 0.28,
        "clip_direction": rng.gauss(0.4 - 0.15 * more, 0.1),
        "clip_image": rng.gauss(0.82 + 0.09 * more, 0.04),
        "edited_image": {"bytes": encode_png(image), "path": None},
    }


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


def _section(html: str, name: str) -> str:
    return html.split(f'<section id="{name}"')[1].split("</section>")[0]


def test_page_is_well_formed(html: str) -> None:
    assert Page(html).open == []


def test_page_asks_nothing_of_the_network(html: str) -> None:
    for tag, attributes in Page(html).tags:
        for name in ("src", "href", "srcset", "data", "action", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value}>"
        assert tag not in ("script", "link", "iframe", "object")
    assert "url(" not in html and "@import" not in html and "http://" not in html and "https://" not in html


def test_the_page_shows_what_the_prompt_stage_wrote_and_what_it_rejected(html: str) -> None:
    section = html[html.index('id="triplets"') : html.index('id="scores"')]
    for part in ("Kept, by edit type", "Words of the instruction", "Verbs", "Objects", "not parsable", "no change"):
        assert part in section
    assert all(f"<span>{kind}</span>" in section for kind in EDIT_TYPES)
    assert "&lt;script&gt;alert" in section and HOSTILE not in section


def test_every_picture_says_what_it_shows_and_decodes(html: str) -> None:
    import base64

    pictures = [attributes for tag, attributes in Page(html).tags if tag == "img"]
    assert len(pictures) > 100
    for attributes in pictures:
        assert attributes["alt"]
        content = base64.b64decode((attributes["src"] or "").split(",")[1])
        assert Image.open(io.BytesIO(content)).size == (64, 64)
        assert (attributes["width"], attributes["class"]) == ("128", "pixelated")


def test_every_chart_has_words_for_those_who_do_not_see_it(html: str) -> None:
    charts = [attributes for tag, attributes in Page(html).tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(charts) == 9  # four similarities, precision, loss, success, curve, shares
    assert all(len(attributes["aria-label"] or "") > 20 for attributes in charts)


def test_links_lead_to_sections_that_exist(html: str) -> None:
    tags = Page(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(attributes["href"] or "")[1:] for tag, attributes in tags if tag == "a"} <= set(ids)


def test_sheets_show_accepted_and_rejected_pairs_with_their_reasons(html: str) -> None:
    accepted, rejected = _section(html, "accepted"), _section(html, "rejected")
    assert accepted.count("<figure") == rejected.count("<figure") == 24
    assert "change unlike the text" in rejected and "change unlike the text" not in accepted
    assert all(score in rejected for score in ("original <b>", "edited <b>", "direction <b>", "image <b>"))


def test_funnel_tells_counts_and_reasons(html: str) -> None:
    counts = re.findall(r'<span class="count">(.*?)</span>', _section(html, "funnel"))
    assert counts[1:4] == ["130", "120", "240"]
    assert "not parsable <b>5</b>" in _section(html, "funnel")


def test_before_and_after_shows_successes_and_failures_of_every_edit_type(html: str) -> None:
    sheets = _section(html, "edits").split("<h3>")[1:]
    assert len(sheets) == 7
    for sheet in sheets:
        assert "badge good" in sheet and "badge bad" in sheet


def test_a_prompt_cannot_smuggle_markup_into_the_page(run_folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    config = replace(synthetic_config(tmp_path / "hostile"))
    table = pq.read_table(run_folder / "pairs" / "part-00000.parquet").slice(0, 2)
    for name in ("edit_prompt", "original_prompt", "edit_type", "reason"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array([f'"{HOSTILE}'] * 2))
    store.write_shard(store.RunFolder(config.out).shard("pairs", 0), table, fingerprint="x", seconds=0.0)
    store.write_shard(store.RunFolder(config.out).shard("candidates", 0), table, fingerprint="x", seconds=0.0)
    page = write_report(config).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page


def test_report_of_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    page = write_report(PipelineConfig(out=tmp_path / "nothing")).read_text()
    assert Page(page).open == []
    assert page.count('class="missing"') == 12


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
    ],
)
def test_report_goes_on_without_any_one_part(part: str, run_folder: Path, tmp_path: Path) -> None:
    import shutil

    config = synthetic_config(tmp_path / "run")
    shutil.copytree(run_folder, config.out)
    path = config.out / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert Page(write_report(config).read_text()).open == []


@pytest.mark.parametrize(
    "part", ["candidates/part-00000.parquet", "pairs/part-00000.parquet", "summary.json", "evaluation/figures.json"]
)
def test_report_goes_on_where_a_file_is_broken(part: str, run_folder: Path, tmp_path: Path) -> None:
    import shutil

    config = synthetic_config(tmp_path / "run")
    shutil.copytree(run_folder, config.out)
    (config.out / part).write_bytes(b"broken")
    assert Page(write_report(config).read_text()).open == []


def test_pictures_for_the_readme_are_written(run_folder: Path) -> None:
    for name in ("strip", "pairs", "curve"):
        with Image.open(run_folder / "report" / f"{name}.png") as image:
            assert image.width > 600 and np.asarray(image.convert("L")).std() > 10


def test_report_without_rejected_images_says_how_to_keep_them(run_folder: Path, tmp_path: Path) -> None:
    import shutil

    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    config = synthetic_config(tmp_path / "run")
    shutil.copytree(run_folder, config.out)
    path = store.RunFolder(config.out).shard("pairs", 0)
    table = pq.read_table(path)
    store.write_shard(path, table.filter(pc.field("accepted")), fingerprint="x", seconds=0.0)
    assert "--rendering.keep-rejected-images" in _section(write_report(config).read_text(), "rejected")


def test_chosen_edits_hold_as_many_failures_as_successes_where_there_are() -> None:
    rows = [{"case": number, "success": number % 3 > 0} for number in range(30)]
    chosen = choose_edits(rows, 8)
    assert [row["success"] for row in chosen] == [True] * 4 + [False] * 4
    assert [row["case"] for row in chosen[:4]] == [1, 2, 4, 5]
    assert len(choose_edits(rows[1:3], 8)) == 2


def test_ticks_are_round_and_inside() -> None:
    assert ticks((0.0, 1.0), 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks((-0.13, 0.42), 5) == pytest.approx([0.0, 0.2, 0.4])


def test_report_never_imports_torch() -> None:
    code = "import ip2p.evaluation.report, ip2p.evaluation, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_of_the_run_are_shown(html: str) -> None:
    assert "filtering.thresholds.direction" in _section(html, "settings")
    assert "evaluation.num_edits" in html and str(EvaluationConfig().num_edits) in html
