"""The web page: what is found among pairs, what runs say, what the callbacks give, and the page in a real browser."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ip2p import rendering
from ip2p.app.address import Settings, default_settings, read_address, write_address
from ip2p.app.browsing import describe, find, open_pairs, read_sides, sample_edits, side_by_side
from ip2p.app.tables import TRIPLET_COLUMNS, describe_runs, find_configs, find_models, find_runs, write_rows
from ip2p.config import PipelineConfig, to_dict
from ip2p.dataset import write_dataset
from ip2p.editing import Editor, Knobs
from ip2p.filtering import REASONS
from ip2p.models.stable_diffusion import ARCHITECTURE as BASE
from ip2p.models.stable_diffusion import widen_conv_in
from ip2p.store import RunFolder, write_json
from ip2p.training.export import write_editor
from tests.test_rendering_candidates import write_triplets
from tests.tiny import tiny_unet, write_tiny_config

Stored = list[dict[str, Any]]
"""The rows of the run's pairs."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path, tiny_clip: Path, tiny_lm: Path) -> PipelineConfig:
    """A run with six pairs, three of them rejected, and an editor of random weights."""
    tiny_config = write_tiny_config(tmp_path_factory.mktemp("runs") / "run", sd=tiny_sd, clip=tiny_clip, lm=tiny_lm)
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


@pytest.fixture(scope="module")
def stored(run: PipelineConfig) -> Stored:
    rows: Stored = pq.read_table(RunFolder(run.out).shard("pairs", 0)).to_pylist()
    return rows


def pixels(content: bytes | str | Path) -> np.ndarray:
    """An independent reading of a PNG."""
    return np.asarray(Image.open(io.BytesIO(content) if isinstance(content, bytes) else content))


def test_pairs_are_found_by_type_verdict_score_and_words(run: PipelineConfig, stored: Stored) -> None:
    pairs = open_pairs(str(run.out))
    assert find(pairs) == list(range(6))
    assert len(find(pairs, edit_types=["colour", "remove"])) == 4
    assert len(find(pairs, verdicts=["accepted"])) == len(find(pairs, verdicts=["low_direction"])) == 3
    assert len(find(pairs, words="REMOVE the")) == 2
    scores = [row["clip_image"] for row in stored]
    middle = float(np.median(scores)) + 1e-3
    assert find(pairs, score="clip_image", low=middle) == [n for n, score in enumerate(scores) if score >= middle]
    assert find(pairs, score="clip_image", high=middle) == [n for n, score in enumerate(scores) if score <= middle]
    assert find(pairs, score="contrast") == list(range(6)) and "contrast" in pairs.scores


def test_a_pair_is_shown_as_it_is_stored(run: PipelineConfig, stored: Stored) -> None:
    pairs = open_pairs(str(run.out))
    both, caption = side_by_side(pairs, 4)
    assert np.array_equal(np.asarray(both)[:, :64], pixels(stored[4]["original_image"]["bytes"]))
    assert np.array_equal(np.asarray(both)[:, -64:], pixels(stored[4]["edited_image"]["bytes"]))
    verdict = REASONS.get(stored[4]["reason"], "accepted")
    assert caption == f"{stored[4]['edit_prompt']} · {stored[4]['edit_type']} · {verdict}"


def test_a_large_pair_is_reduced_on_its_card_alone(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (600, 900), "red").save(content, "PNG")
    cell = {"bytes": content.getvalue(), "path": None}
    pq.write_table(pa.table({"original_image": [cell], "edited_image": [cell]}), tmp_path / "large.parquet")
    pairs = open_pairs(str(tmp_path))
    assert side_by_side(pairs, 0)[0].height == 256
    assert [side.size for side in read_sides(pairs, 0)] == [(600, 900)] * 2


def test_a_dataset_folder_is_opened_too(run: PipelineConfig) -> None:
    pairs = open_pairs(str(RunFolder(run.out).dataset))
    assert len(pairs) == len(find(pairs)) <= 3
    assert side_by_side(pairs, 0)[0].height >= 64
    assert "Verdict" not in describe(pairs, 0)


def test_pairs_under_other_names_are_shown_with_their_texts(stored: Stored, tmp_path: Path) -> None:
    columns = {"source_img": "original_image", "target_img": "edited_image", "instruction": "edit_prompt"}
    table = pa.table({theirs: [row[ours] for row in stored] for theirs, ours in columns.items()})
    pq.write_table(table, tmp_path / "one.parquet")
    pq.write_table(table.drop_columns("instruction"), tmp_path / "two.parquet")
    pairs = open_pairs(str(tmp_path))
    assert find(pairs) == list(range(2 * len(stored)))
    assert side_by_side(pairs, len(stored))[0].tobytes() == side_by_side(pairs, 0)[0].tobytes()
    assert side_by_side(pairs, 0)[1] == stored[0]["edit_prompt"] and side_by_side(pairs, len(stored))[1] == ""
    assert find(pairs, words=stored[0]["edit_prompt"])[0] == 0
    assert describe(pairs, len(stored)) == {"Place": f"{tmp_path / 'two.parquet'} row 1"}


def test_a_folder_that_was_written_since_is_read_again(stored: Stored, tmp_path: Path) -> None:
    table = pa.table({name: [row[name] for row in stored] for name in ("original_image", "edited_image")})
    for num_rows in (2, 5):
        pq.write_table(table.slice(0, num_rows), tmp_path / "pairs.parquet")
        os.utime(tmp_path / "pairs.parquet", (num_rows, num_rows))
        assert len(open_pairs(str(tmp_path))) == num_rows


def test_a_picture_that_does_not_decode_is_a_blank_card_that_says_so(stored: Stored, tmp_path: Path) -> None:
    broken = {"bytes": b"no picture", "path": None}
    rows = [{**row, "edited_image": broken} if number == 1 else row for number, row in enumerate(stored)]
    columns = ("original_image", "edited_image", "edit_prompt")
    pq.write_table(pa.table({name: [row[name] for row in rows] for name in columns}), tmp_path / "pairs.parquet")
    pairs = open_pairs(str(tmp_path))
    assert (
        side_by_side(pairs, 1)[1] == f"{tmp_path / 'pairs.parquet'} row 2: image does not decode: its format is unknown"
    )
    assert side_by_side(pairs, 2)[1] == stored[2]["edit_prompt"]


def test_what_holds_no_pairs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no parquet file"):
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


SETTINGS = Settings(
    instruction="rot & blau? 100% ü",
    model="runs/a b/model",
    guidance_scale=3.5,
    image_guidance_scale=1.4,
    num_inference_steps=7,
    seed=2**32 - 1,
    sample=2,
)


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, sample=None), replace(SETTINGS, instruction="")])
def test_an_address_restores_the_settings_that_it_was_written_from(settings: Settings) -> None:
    query = dict(parse_qsl(write_address(settings), keep_blank_values=True))
    assert read_address(query, "another/model") == settings


def test_what_an_address_lacks_or_gives_wrongly_is_as_the_editor_was_evaluated(run: PipelineConfig) -> None:
    model = find_models(run.out.parent)[0]
    defaults = replace(default_settings(model), sample=0)
    assert (defaults.guidance_scale, defaults.num_inference_steps, defaults.model) == (3.0, 2, model)
    assert read_address({}, model) == defaults
    wrong = {"guidance_scale": "nan", "image_guidance_scale": "1e9", "num_inference_steps": "0", "seed": "x"}
    assert read_address({**wrong, "sample": "-1", "__theme": "dark"}, model) == defaults


def test_samples_are_pictures_of_the_editors_run_with_their_instructions(run: PipelineConfig, tmp_path: Path) -> None:
    samples = sample_edits(find_models(run.out.parent)[0], tmp_path)
    files = RunFolder(run.out).dataset.glob("data/*.parquet")
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    known = {(pixels(row["original_image"]["bytes"]).tobytes(), row["edit_prompt"]) for row in rows}
    assert samples and {(pixels(path).tobytes(), instruction) for path, instruction in samples} <= known
    assert sample_edits("timbrooks/instruct-pix2pix", tmp_path) == sample_edits("", tmp_path) == []


@pytest.fixture
def pairs_calls(run: PipelineConfig, tmp_path: Path) -> Any:
    pytest.importorskip("gradio")
    from ip2p.app.pairs_tab import PairsCalls

    return PairsCalls(run.out.parent, tmp_path)


def test_the_newest_run_is_shown_at_once_with_filters_of_its_values(
    pairs_calls: Any, run: PipelineConfig, stored: Stored
) -> None:
    source = pairs_calls.list_sources()["value"]
    assert source == str(run.out)
    kinds, verdicts, scores, *_, view, text, cards, previous, following = pairs_calls.open_source(source)
    assert dict(kinds["choices"]) == {f"{kind} (2)": kind for kind in ("colour", "remove", "background")}
    assert {value for _, value in verdicts["choices"]} == {row["reason"] or "accepted" for row in stored}
    assert {value for _, value in scores["choices"]} >= {"clip_direction", "contrast"}
    assert text == "6 of 6 pairs · page 1 of 1" and len(cards) == 6
    assert not previous["interactive"] and not following["interactive"]
    view, text, cards, *_ = pairs_calls.show(view, [], ["accepted"], None, None, None, "")
    assert text == "3 of 6 pairs · page 1 of 1" and all("accepted" in caption for _, caption in cards)
    assert pairs_calls.show(view, None, None, None, None, None, None)[1] == "6 of 6 pairs · page 1 of 1"


def test_pages_show_every_pair_once_and_end_at_the_last(
    pairs_calls: Any, run: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ip2p.app.pairs_tab.PER_PAGE", 4)
    *_, view, text, first, previous, following = pairs_calls.open_source(str(run.out))
    assert text == "6 of 6 pairs · page 1 of 2" and following["interactive"] and not previous["interactive"]
    view, text, second, previous, following = pairs_calls.next_page(view)
    assert text == "6 of 6 pairs · page 2 of 2" and previous["interactive"] and not following["interactive"]
    pairs = open_pairs(str(run.out))
    assert [caption for _, caption in [*first, *second]] == [side_by_side(pairs, number)[1] for number in range(6)]
    assert pairs_calls.next_page(view)[1] == text
    view, text, again, *_ = pairs_calls.previous_page(view)
    assert again == first and pairs_calls.previous_page(view)[1] == text == "6 of 6 pairs · page 1 of 2"


def test_a_chosen_pair_is_shown_in_its_pixels_with_texts_verdict_and_scores(
    pairs_calls: Any, run: PipelineConfig, stored: Stored
) -> None:
    import gradio as gr

    view = pairs_calls.open_source(str(run.out))[6]
    view = pairs_calls.show(view, ["remove"], [], None, None, None, "")[0]
    large, original, edited, facts = pairs_calls.show_pair(view, gr.SelectData(None, {"index": 1, "value": None}))
    row = [row for row in stored if row["edit_type"] == "remove"][1]
    assert large["visible"] and not pairs_calls.close_pair()[0]["visible"]
    assert np.array_equal(pixels(original), pixels(row["original_image"]["bytes"]))
    assert np.array_equal(pixels(edited), pixels(row["edited_image"]["bytes"]))
    shown = [row["edit_prompt"], row["original_prompt"], row["edited_prompt"], f"{row['clip_direction']:.3f}"]
    assert all(f"<dd>{text}</dd>" in unescape(facts) for text in [*shown, REASONS.get(row["reason"], "accepted")])


def test_without_a_run_the_page_says_what_to_do(tmp_path: Path) -> None:
    gr = pytest.importorskip("gradio")
    from ip2p.app.edit_tab import EditCalls
    from ip2p.app.pairs_tab import PairsCalls

    pairs_calls = PairsCalls(tmp_path, tmp_path)
    assert pairs_calls.list_sources()["value"] is None
    *_, view, text, cards, _, _ = pairs_calls.open_source(None)
    assert (view, cards) == (None, []) and text.startswith(f"There is no run below {tmp_path} yet. Make one with")
    *_, view, text, cards, _, _ = pairs_calls.open_source("./nowhere")
    assert (view, cards) == (None, []) and text.startswith("./nowhere does not exist. Give a run folder")
    picture, instruction, model, *_ = EditCalls(tmp_path, None, "cpu", tmp_path).restore(gr.Request(query_params={}))
    assert (picture, instruction, model["choices"]) == (None, "", [])


@pytest.fixture
def edit_calls(run: PipelineConfig, tmp_path: Path) -> Any:
    pytest.importorskip("gradio")
    from ip2p.app.edit_tab import EditCalls

    return EditCalls(run.out.parent, None, "cpu", tmp_path)


def test_the_form_starts_on_a_sample_and_is_restored_from_the_address(edit_calls: Any, run: PipelineConfig) -> None:
    import gradio as gr

    model = str(RunFolder(run.out).model)
    picture, instruction, chosen, text, _, steps, seed, *_, samples, number = edit_calls.restore(
        gr.Request(query_params={})
    )
    assert (picture, instruction) == samples[0] and number == 0
    assert (chosen["value"], text, steps, seed) == (model, 3.0, 2, 0)
    query = dict(
        parse_qsl(edit_calls.write_address("make it blue", model, 2.5, 1.2, 4, 9, None), keep_blank_values=True)
    )
    picture, instruction, chosen, *knobs, _, _, number = edit_calls.restore(gr.Request(query_params=query))
    assert (picture, instruction, chosen["value"], number) == (None, "make it blue", model, None)
    assert knobs == [2.5, 1.2, 4, 9]


def write_uploads(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    Image.new("RGB", (4000, 1)).save(folder / "long.png")
    Image.new("RGB", (64, 64)).save(folder / "good.png")


@pytest.mark.parametrize(
    ("file", "instruction", "line"),
    [
        (None, "make it blue", "there is no picture to edit. Upload a picture first."),
        ("good.png", None, "there is no instruction. Say what to do, such as: make it snowy"),
        ("good.png", " ", "there is no instruction. Say what to do, such as: make it snowy"),
        ("broken.png", "make it blue", "cannot read broken.png: image does not decode: "),
        ("long.png", "make it blue", "long.png is 4000 x 1 pixels; one side may be 16 times the other. Crop it."),
    ],
)
def test_a_mistake_is_one_line(
    edit_calls: Any, run: PipelineConfig, tmp_path: Path, file: str | None, instruction: str | None, line: str
) -> None:
    import gradio as gr

    from ip2p.app.mistakes import friendly

    write_uploads(tmp_path)
    path = str(tmp_path / file) if file else None
    with pytest.raises(gr.Error) as caught:
        friendly(edit_calls.edit)(path, instruction, str(RunFolder(run.out).model), 2, 1.5, 1, 0, [])
    assert caught.value.message.startswith(line) and "\n" not in caught.value.message


@pytest.fixture(scope="module")
def address(run: PipelineConfig) -> Iterator[str]:
    pytest.importorskip("gradio")
    from ip2p.app import build_page, serve

    page = build_page(run.out.parent, device="cpu")
    yield serve(page, run.out.parent, wait=False)
    page.close()


@pytest.mark.slow
def test_an_uploaded_picture_keeps_its_alpha_and_is_edited_on_white(
    address: str, run: PipelineConfig, tmp_path: Path
) -> None:
    from gradio_client import Client, handle_file

    model = str(RunFolder(run.out).model)
    Image.new("RGBA", (64, 64), (255, 0, 255, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    client = Client(address, download_files=str(tmp_path / "results"), verbose=False)
    edit = (handle_file(tmp_path / "clear.png"), "make it blue", model, 3, 1.5, 2, 5)
    (before, after), _ = client.predict(*edit, api_name="/edit")
    knobs = Knobs(guidance_scale=3, image_guidance_scale=1.5, num_inference_steps=2)
    expected = Editor(model, device="cpu")(tmp_path / "white.png", "make it blue", seed=5, knobs=knobs)
    assert np.array_equal(pixels(before), np.full((64, 64, 3), 255))
    assert np.array_equal(pixels(after), np.asarray(expected))
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert {"/edit", "/grid", "/default_knobs", "/open_source", "/show", "/write_rows"} <= set(endpoints)
    assert "6 of 6 pairs" in str(client.predict(str(run.out), api_name="/open_source"))


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
    asked = "([place, words]) => document.querySelector(place)?.innerText.includes(words)"
    page.wait_for_function(asked, arg=[place, words], timeout=60_000)


@pytest.mark.slow
def test_a_sample_is_edited_and_pairs_are_browsed_in_a_browser(page: Any, address: str) -> None:
    page.wait_for_selector("#picture img")
    page.fill("#instruction textarea, #instruction input", "make it blue")
    page.click("#edit")
    page.wait_for_selector("#history img", timeout=60_000)
    page.wait_for_function("location.search.includes('instruction=make+it+blue')", timeout=30_000)
    page.goto(page.url)
    instruction = "document.querySelector('#instruction textarea, #instruction input')?.value === 'make it blue'"
    page.wait_for_function(instruction, timeout=30_000)
    page.wait_for_selector("#picture img[data-small]")
    page.click("#grid")
    page.wait_for_function("document.querySelectorAll('#guidances img').length >= 9", timeout=60_000)
    page.get_by_role("tab", name="Pairs").click()
    page.wait_for_selector("#pairs img", timeout=60_000)
    wait_for(page, "#found", "6 of 6 pairs")
    assert page.locator(".toast-body").count() == 0  # an error would be told there
    page.click("#pairs button >> nth=1")
    wait_for(page, "#facts", "Instruction")
    page.keyboard.press("Escape")
    page.wait_for_selector("#pair", state="hidden")
    page.fill("#words textarea, #words input", "remove")
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
    page.wait_for_selector("#picture img")
    page.fill("#instruction textarea, #instruction input", "")
    page.click("#edit")
    page.wait_for_selector("text=there is no instruction. Say what to do, such as: make it snowy", timeout=30_000)
