"""Builds the page: four tabs over the editor, the pairs, the prompt stage and the runs, for this machine alone.

Each tab is a function that lays it out and connects it to the callbacks below it.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ip2p.app.browsing import ACCEPTED, Pairs, find, open_pairs, side_by_side
from ip2p.app.tables import (
    RUN_COLUMNS,
    TRIPLET_COLUMNS,
    describe_runs,
    find_configs,
    find_models,
    find_runs,
    write_rows,
)
from ip2p.config.files import evaluation_of
from ip2p.console import first_line
from ip2p.editing.editor import Editor, Knobs, read_image
from ip2p.records import content_hash
from ip2p.store import write_atomic

MOST_UPLOADED = "20mb"
WAITING = 16
"""Edits that may wait in the queue; further ones are refused."""
PER_PAGE = 24
HISTORY = 12
TEXT_FACTORS, IMAGE_SCALES = (0.5, 1.0, 1.5), (1.2, 1.5, 1.8)
"""Rows and columns of the grid: factors of the chosen text guidance, and image guidances."""
FONTS = (gr.themes.Font("system-ui"), gr.themes.Font("sans-serif"))
MONOSPACE = (gr.themes.Font("ui-monospace"), gr.themes.Font("monospace"))
THEME = gr.themes.Base(font=FONTS, font_mono=MONOSPACE)
"""Fonts of the system, so that none is fetched from elsewhere."""


def build_page(root: Path, model: str | None = None, device: str = "auto") -> gr.Blocks:
    """Builds the page over the runs below `root`; `model` is the editor selected on start."""
    models = list(dict.fromkeys([*([model] if model else []), *find_models(root)]))
    page = gr.Blocks(title="ip2p", analytics_enabled=False)
    with page:
        gr.Markdown("# ip2p\nEdit pictures, look through the pairs that an editor learns from, compare runs.")
        with gr.Tab("Edit"):
            _edit_tab(models, device)
        with gr.Tab("Pairs"):
            _pairs_tab(root)
        with gr.Tab("Prompts"):
            _prompts_tab(root)
        with gr.Tab("Runs"):
            _runs_tab(root)
    return page


def serve(page: gr.Blocks, root: Path, *, port: int | None = None, share: bool = False, wait: bool = True) -> str:
    """Starts the page on 127.0.0.1 and returns its address; blocks while `wait`."""
    _, address, _ = page.queue(max_size=WAITING, default_concurrency_limit=1).launch(
        server_name="127.0.0.1",
        server_port=port,
        share=share,
        max_file_size=MOST_UPLOADED,
        allowed_paths=[str(path / "report") for path in find_runs(root)],
        prevent_thread_lock=not wait,
        show_error=True,
        quiet=True,
        theme=THEME,
        footer_links=[],
    )
    return str(address)


def friendly(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Shows a mistake on the page in one line, without a traceback. The page's API calls the function by the name."""

    def checked(*values: Any) -> Any:
        try:
            return call(*values)
        except (ValueError, RuntimeError, OSError) as error:
            raise gr.Error(first_line(error), print_exception=False) from error

    checked.__name__ = name
    return checked


def _edit_tab(models: list[str], device: str) -> None:
    first = models[0] if models else None
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            picture = gr.Image(label="Picture", type="filepath", image_mode=None, elem_id="picture", height=280)
            instruction = gr.Textbox(label="Instruction", placeholder="make it snowy", elem_id="instruction")
            model = gr.Dropdown(models, value=first, label="Editor", allow_custom_value=True, elem_id="editor")
            defaults = default_knobs(first)
            text = gr.Slider(1, 15, defaults[0], step=0.5, label="Text guidance")
            image = gr.Slider(1, 3, defaults[1], step=0.1, label="Image guidance")
            with gr.Row():
                steps = gr.Slider(1, 100, defaults[2], step=1, label="Steps")
                seed = gr.Number(0, precision=0, label="Seed")
            with gr.Row():
                edit = gr.Button("Edit", variant="primary", elem_id="edit")
                grid = gr.Button("Grid of guidances", elem_id="grid")
        with gr.Column(scale=2, min_width=320):
            result = gr.ImageSlider(label="Before and after", type="pil", elem_id="result")
            cells = gr.Gallery(
                label="Text guidance by row, image guidance by column",
                columns=len(IMAGE_SCALES),
                object_fit="contain",
                height="auto",
                elem_id="guidances",
            )
            gallery = gr.Gallery(label="History", columns=4, object_fit="contain", elem_id="history", height=280)
    history = gr.State([])
    inputs = [picture, instruction, model, text, image, steps, seed]
    gr.on(
        [edit.click, instruction.submit],
        friendly(partial(_edit_once, device), "edit"),
        [*inputs, history],
        [result, gallery, history],
    )
    grid.click(friendly(partial(_edit_grid, device), "grid"), inputs, cells)
    model.change(default_knobs, model, [text, image, steps])


def default_knobs(model: str | None) -> tuple[float, float, int]:
    """Returns text guidance, image guidance and steps that a run's editor was evaluated with, else the defaults."""
    knobs = evaluation_of(Path(model or ""))
    return knobs.guidance_scale, knobs.image_guidance_scale, knobs.num_inference_steps


def _edit_once(device: str, *values: Any) -> Any:
    _, instruction, _, text, image, _, seed, history = values
    editor, picture, knobs = _prepare(device, *values[:6])
    edited = editor(picture, instruction, seed=int(seed), knobs=knobs)
    title = f"{instruction} (text {text:g}, image {image:g}, seed {seed:g})"
    history = [(edited, title), *history][:HISTORY]
    return (picture, edited), history, history


def _edit_grid(device: str, *values: Any) -> list[tuple[Image.Image, str]]:
    _, instruction, _, text, _, _, seed = values
    editor, picture, knobs = _prepare(device, *values[:6])
    scales = tuple(round(text * factor, 1) for factor in TEXT_FACTORS)
    rows = editor.edit_grid(
        picture,
        instruction,
        guidance_scales=scales,
        image_guidance_scales=IMAGE_SCALES,
        seed=int(seed),
        knobs=knobs,
    )
    return [
        (edited, f"text {scale:g}, image {image_scale:g}")
        for scale, row in zip(scales, rows, strict=True)
        for image_scale, edited in zip(IMAGE_SCALES, row, strict=True)
    ]


def _prepare(
    device: str, path: str | None, instruction: str, model: str | None, text: float, image: float, steps: float
) -> tuple[Editor, Image.Image, Knobs]:
    if not path:
        raise ValueError("there is no picture to edit. Upload a picture first.")
    if not instruction.strip():
        raise ValueError("there is no instruction. Say what to do, such as: make it snowy")
    if not model:
        raise ValueError("there is no editor. Train one with `ip2p run`, or give a model folder or a hub id.")
    knobs = Knobs(guidance_scale=text, image_guidance_scale=image, num_inference_steps=int(steps))
    return Editor(model, device=device), read_image(path), knobs


def _pairs_tab(root: Path) -> None:
    runs = [str(path) for path in find_runs(root)]
    with gr.Row():
        source = gr.Dropdown(
            runs,
            value=runs[0] if runs else None,
            label="Run folder, folder of parquet files, or hub id",
            allow_custom_value=True,
            scale=4,
            elem_id="source",
        )
        load = gr.Button("Open", variant="primary", scale=1, elem_id="open")
    with gr.Row():
        kinds = gr.Dropdown([], label="Edit types", multiselect=True, elem_id="kinds")
        verdicts = gr.Dropdown([], label="Verdicts", multiselect=True, elem_id="verdicts")
        score = gr.Dropdown([], label="Score", elem_id="score")
        low = gr.Number(-1, label="from")
        high = gr.Number(1, label="to")
        words = gr.Textbox(label="Words", elem_id="words")
        number = gr.Number(1, label="Page", precision=0, minimum=1, elem_id="page")
    count = gr.Markdown(elem_id="found")
    gallery = gr.Gallery(label="Pairs", columns=3, object_fit="contain", elem_id="pairs", height="auto")
    pairs: gr.State = gr.State(None)
    cards = Path(tempfile.mkdtemp(prefix="ip2p-page-"))
    atexit.register(shutil.rmtree, cards, ignore_errors=True)

    show = friendly(partial(_show_pairs, cards), "show")
    filters: list[Any] = [pairs, kinds, verdicts, score, low, high, words, number]
    load.click(friendly(_open_pairs, "open_source"), source, [pairs, kinds, verdicts, score, number]).then(
        show, filters, [count, gallery]
    )
    typed = [field.submit for field in (low, high, words, number)]
    chosen = [field.input for field in (kinds, verdicts, score, low, high, number)]
    gr.on([*typed, words.blur, *chosen], show, filters, [count, gallery], trigger_mode="always_last")


def _open_pairs(source: str | None) -> tuple[Any, ...]:
    """Opens the pairs and fills the filters with what can be chosen among them."""
    pairs = open_pairs(source or "")
    reasons = [ACCEPTED, *pairs.choices("reason")] if "reason" in pairs.table.column_names else []
    return (
        pairs,
        gr.update(choices=pairs.choices("edit_type"), value=[]),
        gr.update(choices=reasons, value=[]),
        gr.update(choices=pairs.scores(), value=None),
        1,
    )


def _show_pairs(cards: Path, pairs: Pairs | None, *filters: Any) -> tuple[str, Sequence[tuple[str, str]]]:
    if pairs is None:
        return "", []
    edit_types, verdicts, score, low, high, words, number = filters
    rows = find(pairs, edit_types=edit_types, verdicts=verdicts, score=score, low=low, high=high, words=words)
    num_pages = max(1, -(-len(rows) // PER_PAGE))
    start = (min(max(1, int(number or 1)), num_pages) - 1) * PER_PAGE
    page = [_card(pairs, int(row), cards) for row in rows[start : start + PER_PAGE]]
    return f"{len(rows)} of {len(pairs.table)} pairs, {num_pages} pages", page


def _card(pairs: Pairs, number: int, folder: Path) -> tuple[str, str]:
    """Writes a pair's picture, once: a file that is rewritten while it is served arrives broken."""
    picture, caption = side_by_side(pairs, number)
    path = folder / f"{content_hash(picture.size, picture.tobytes().hex())}.png"
    if not path.exists():
        write_atomic(path, lambda file: picture.save(file, "PNG"))
    return str(path), caption


def _prompts_tab(root: Path) -> None:
    configs = find_configs(root)
    with gr.Row():
        caption = gr.Textbox(label="Caption", placeholder="a photo of a horse in a field", scale=4, elem_id="caption")
        config = gr.Dropdown(
            configs, value=configs[0], label="Run or preset", allow_custom_value=True, elem_id="config"
        )
        number = gr.Slider(1, 20, 5, step=1, label="Triplets", elem_id="triplets")
        write = gr.Button("Write", variant="primary", elem_id="write")
    table = gr.Dataframe(headers=list(TRIPLET_COLUMNS), interactive=False, wrap=True, elem_id="written")
    gr.on([write.click, caption.submit], friendly(write_rows, "write_rows"), [config, caption, number], table)


def _runs_tab(root: Path) -> None:
    def rows() -> list[list[str]]:
        return describe_runs(find_runs(root))

    gr.Markdown(f"Runs below `{root}`, newest first.")
    kinds: Any = ["str"] * (len(RUN_COLUMNS) - 1) + ["markdown"]
    table = gr.Dataframe(rows(), headers=list(RUN_COLUMNS), datatype=kinds, interactive=False, elem_id="runs")
    gr.Button("Refresh").click(rows, None, table)
