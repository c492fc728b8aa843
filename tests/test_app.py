"""The web page: what is found among pairs, what runs say, and the page itself in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ip2p import rendering
from ip2p.app.browsing import find, open_pairs, side_by_side
from ip2p.app.tables import TRIPLET_COLUMNS, describe_runs, find_configs, find_models, find_runs, write_rows
from ip2p.config import PipelineConfig, to_dict
from ip2p.dataset import write_dataset
from ip2p.models.stable_diffusion import ARCHITECTURE as BASE
from ip2p.models.stable_diffusion import widen_conv_in
from ip2p.store import RunFolder, write_json
from ip2p.training.export import write_editor
from tests.test_rendering_candidates import write_triplets
from tests.tiny import tiny_unet


@pytest.fixture
def run(tiny_config: PipelineConfig) -> PipelineConfig:
    """A run with six pairs, three of them rejected, and an editor of random weights."""
    write_triplets(tiny_config)
    config = replace(tiny_config, rendering=replace(tiny_config.rendering, keep_rejected_images=True))
    rendering.write_shard(config, 0)
    scores = pq.read_table(RunFolder(config.out).shard("candidates", 0))["clip_direction"].to_pylist()
    thresholds = replace(config.filtering.thresholds, direction=sorted(scores)[3])
    config = replace(config, filtering=replace(config.filtering, thresholds=thresholds))
    rendering.refilter(config)
    write_dataset(config)
    write_editor(widen_conv_in(tiny_unet(), 8), BASE, config.training, RunFolder(config.out).model)
    write_json(config.out / "summary.json", {"dataset": {"pairs": 3}, "training": {"steps": 2}})
    prompts = replace(config.prompts, backend="template")
    knobs = replace(config.evaluation, guidance_scale=3.0, num_inference_steps=2)
    write_json(config.out / "config.json", to_dict(replace(config, prompts=prompts, evaluation=knobs)))
    write_json(config.out / "evaluation" / "figures.json", {"success": 0.5, "clip_direction": 0.25})
    return config


def test_pairs_are_found_by_type_verdict_score_and_words(run: PipelineConfig) -> None:
    pairs = open_pairs(str(run.out))
    assert len(find(pairs)) == 6
    assert len(find(pairs, edit_types=["colour", "remove"])) == 4
    assert len(find(pairs, verdicts=["accepted"])) == len(find(pairs, verdicts=["low_direction"])) == 3
    assert len(find(pairs, words="REMOVE the")) == 2
    scores = pairs.table["clip_image"].to_numpy()
    middle = float(np.median(scores)) + 1e-3
    assert find(pairs, score="clip_image", low=middle).tolist() == np.flatnonzero(scores >= middle).tolist()
    assert pairs.choices("edit_type") == ["colour", "remove", "background"] and "contrast" in pairs.scores()


def test_a_pair_is_shown_as_it_is_stored(run: PipelineConfig) -> None:
    pairs = open_pairs(str(run.out))
    both, caption = side_by_side(pairs, 4)
    stored = pq.read_table(RunFolder(run.out).shard("pairs", 0)).to_pylist()[4]
    import io

    original = np.asarray(Image.open(io.BytesIO(stored["original_image"]["bytes"])))
    assert np.array_equal(np.asarray(both)[::3, : 64 * 3 : 3], original)
    assert stored["edit_prompt"] in caption and (stored["reason"] or "accepted") in caption


def test_a_dataset_folder_is_opened_too(run: PipelineConfig) -> None:
    pairs = open_pairs(str(RunFolder(run.out).dataset))
    assert len(pairs.table) == len(find(pairs)) <= 3
    assert side_by_side(pairs, 0)[0].height >= 64


def test_pairs_without_any_of_our_columns_are_shown(run: PipelineConfig, tmp_path: Path) -> None:
    stored = pq.read_table(RunFolder(run.out).shard("pairs", 0))
    columns = {"source_img": stored["original_image"], "target_img": stored["edited_image"]}
    folder = tmp_path / "foreign"
    folder.mkdir()
    for name in ("one", "two"):
        pq.write_table(pa.table({**columns, "instruction": stored["edit_prompt"]}), folder / f"{name}.parquet")
    pairs = open_pairs(str(folder))
    assert find(pairs).tolist() == list(range(2 * len(stored)))
    assert side_by_side(pairs, len(stored))[0].tobytes() == side_by_side(pairs, 0)[0].tobytes()


def test_what_holds_no_pairs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no parquet file of pairs"):
        open_pairs(str(tmp_path))
    with pytest.raises(ValueError, match="does not exist"):
        open_pairs("./nowhere")


def test_a_caption_is_tried_with_a_preset_or_a_run(run: PipelineConfig) -> None:
    caption = "a small red circle on a white background"
    rows = write_rows("shapes", caption, 2)
    assert len(rows) == 2 and all(len(row) == len(TRIPLET_COLUMNS) for row in rows)
    assert {str(run.out), "shapes"} <= set(find_configs(run.out.parent))
    assert [row[0] for row in write_rows(str(run.out), caption, 3)] == ["kept"] * 3
    with pytest.raises(ValueError, match="nowhere is neither a run nor a preset"):
        write_rows("nowhere", caption, 1)


def test_runs_and_editors_are_found_with_their_figures(run: PipelineConfig) -> None:
    root = run.out.parent
    assert find_runs(root) == [run.out]
    assert find_models(root) == [str(RunFolder(run.out).model)]
    assert describe_runs([run.out]) == [["run", "3", "2", "50.0%", "0.250", "–", "–"]]


@pytest.fixture
def address(run: PipelineConfig) -> Iterator[str]:
    pytest.importorskip("gradio")
    from ip2p.app import build_page, serve

    page = build_page(run.out.parent, device="cpu")
    yield serve(page, run.out.parent, wait=False)
    page.close()


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """The page in a headless Chromium; nothing but this machine is asked and nothing goes wrong."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        wrong: list[str] = []
        opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("request", lambda request: wrong.append(request.url) if _is_elsewhere(request.url) else None)
        opened.goto(address)
        yield opened
        browser.close()
        assert not wrong


def _is_elsewhere(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1", "data:", "blob:"))


def wait_for(page: Any, place: str, words: str) -> None:
    """Until a part of the page says so."""
    asked = "([place, words]) => document.querySelector(place).innerText.includes(words)"
    page.wait_for_function(asked, arg=[place, words], timeout=60_000)


@pytest.mark.slow
def test_a_picture_is_edited_and_pairs_are_browsed_in_a_browser(page: Any, tmp_path: Path) -> None:
    Image.new("RGB", (80, 64), "red").save(tmp_path / "in.png")
    page.set_input_files("#picture input[type=file]", tmp_path / "in.png")
    page.wait_for_selector("#picture img")
    page.fill("#instruction textarea, #instruction input", "make it blue")
    page.click("#edit")
    page.wait_for_selector("#history img", timeout=60_000)
    page.click("#grid")
    page.wait_for_function("document.querySelectorAll('#guidances img').length >= 9", timeout=60_000)
    page.get_by_role("tab", name="Pairs").click()
    page.click("#open")
    page.wait_for_selector("#pairs img", timeout=60_000)
    wait_for(page, "#found", "6 of 6 pairs")
    page.fill("#words textarea, #words input", "remove")
    page.keyboard.press("Enter")
    wait_for(page, "#found", "2 of 6 pairs")
    shown = "Array.from(document.querySelectorAll('#pairs img')).every((image) => image.naturalWidth > 0)"
    page.wait_for_function(shown)
    page.get_by_role("tab", name="Prompts").click()
    page.fill("#caption textarea, #caption input", "a small red circle on a white background")
    page.click("#write")
    wait_for(page, "#written", "kept")
    page.get_by_role("tab", name="Runs").click()
    wait_for(page, "#runs", "50.0%")


@pytest.mark.slow
def test_a_mistake_is_said_on_the_page(page: Any) -> None:
    page.fill("#instruction textarea, #instruction input", "make it blue")
    page.click("#edit")
    page.wait_for_selector("text=there is no picture to edit. Upload a picture first.", timeout=30_000)
