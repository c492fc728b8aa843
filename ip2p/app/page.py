"""The page itself: four tabs over the editor, the pairs, the prompt stage and the runs; bound to this machine alone."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from ip2p.app.browsing import ACCEPTED, Pairs, Wanted, find, open_pairs, side_by_side
from ip2p.app.tables import HEAD, describe_runs, find_configs, find_models, find_runs, write_rows
from ip2p.app.tables import PROMPT_COLUMNS as TRIPLET_HEAD
from ip2p.config.files import evaluation_of
from ip2p.console import first_line
from ip2p.editing.editor import Editor, Knobs, read_image
from ip2p.records import content_hash
from ip2p.store import write_atomic

MOST_UPLOADED = "20mb"
WAITING = 16
"""Edits that may wait; further ones are told to come back."""
PER_PAGE = 24
HISTORY = 12
TEXT_FACTORS, IMAGE_SCALES = (0.5, 1.0, 1.5), (1.2, 1.5, 1.8)
"""Of the grid: of the text guidance that is set, and as they are."""
FONTS = (gr.themes.Font("system-ui"), gr.themes.Font("sans-serif"))
MONOSPACE = (gr.themes.Font("ui-monospace"), gr.themes.Font("monospace"))
THEME = gr.themes.Base(font=FONTS, font_mono=MONOSPACE)
"""No font is fetched from anywhere."""


def build_page(root: Path, model: str | None = None, device: str = "auto") -> gr.Blocks:
    """The page over the runs below `root`; `model` is the editor that is chosen at first."""
    models = find_models(root)
    first = model or (models[0] if models else "")
    page = gr.Blocks(title="ip2p", analytics_enabled=False)
    with page:
        gr.Markdown("# ip2p\nEdit pictures, look through the pairs that an editor learns from, compare runs.")
        with gr.Tab("Edit"):
            _edit_tab([first, *(each for each in models if each != first)] if first else models, device)
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


def friendly(call: Callable[..., Any]) -> Callable[..., Any]:
    """A mistake is said on the page in one line, without a traceback."""

    @wraps(call)
    def said(*values: Any) -> Any:
        try:
            return call(*values)
        except (ValueError, RuntimeError, OSError) as error:
            raise gr.Error(first_line(error), print_exception=False) from error

    return said


def _edit_tab(models: list[str], device: str) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            image = gr.Image(label="Picture", type="filepath", image_mode=None, elem_id="picture", height=280)
            wish = gr.Textbox(label="Instruction", placeholder="make it snowy", elem_id="instruction")
            model = gr.Dropdown(
                models, value=models[0] if models else None, label="Editor", allow_custom_value=True, elem_id="editor"
            )
            usual = usual_knobs(models[0] if models else None)
            text = gr.Slider(1, 15, usual[0], step=0.5, label="Text guidance")
            kept = gr.Slider(1, 3, usual[1], step=0.1, label="Image guidance")
            with gr.Row():
                steps = gr.Slider(1, 100, usual[2], step=1, label="Steps")
                seed = gr.Number(0, precision=0, label="Seed")
            with gr.Row():
                once = gr.Button("Edit", variant="primary", elem_id="edit")
                many = gr.Button("Grid of guidances", elem_id="grid")
        with gr.Column(scale=2, min_width=320):
            both = gr.ImageSlider(label="Before and after", type="pil", elem_id="result")
            grids = gr.Gallery(
                label="Text guidance by row, image guidance by column",
                columns=len(IMAGE_SCALES),
                object_fit="contain",
                height="auto",
                elem_id="guidances",
            )
            gallery = gr.Gallery(label="History", columns=4, object_fit="contain", elem_id="history", height=280)
    history = gr.State([])
    inputs = [image, wish, model, text, kept, steps, seed]

    def edit(path: str, instruction: str, name: str, t: float, i: float, num: int, number: int, seen: list[Any]) -> Any:
        editor, picture = _ready(path, instruction, name, device)
        edited = editor(picture, instruction, seed=int(number), knobs=_knobs(t, i, num))
        seen = [(edited, f"{instruction} (text {t:g}, image {i:g}, seed {number:g})"), *seen][:HISTORY]
        return (picture, edited), seen, seen

    def grid(path: str, instruction: str, name: str, t: float, i: float, num: int, number: int) -> Any:
        editor, picture = _ready(path, instruction, name, device)
        scales = tuple(round(t * factor, 1) for factor in TEXT_FACTORS)
        rows = editor.edit_grid(
            picture,
            instruction,
            guidance_scales=scales,
            image_guidance_scales=IMAGE_SCALES,
            seed=int(number),
            knobs=_knobs(t, i, num),
        )
        return [
            (edited, f"text {scale:g}, image {other:g}")
            for scale, row in zip(scales, rows, strict=True)
            for other, edited in zip(IMAGE_SCALES, row, strict=True)
        ]

    gr.on([once.click, wish.submit], friendly(edit), [*inputs, history], [both, gallery, history])
    many.click(friendly(grid), inputs, grids)
    model.change(usual_knobs, model, [text, kept, steps])


def usual_knobs(model: str | None) -> tuple[float, float, int]:
    """Text guidance, image guidance and steps that a run's editor was evaluated with; else the usual ones."""
    knobs = evaluation_of(Path(model or ""))
    return knobs.guidance_scale, knobs.image_guidance_scale, knobs.num_inference_steps


def _knobs(text: float, image: float, steps: float) -> Knobs:
    return Knobs(guidance_scale=text, image_guidance_scale=image, num_inference_steps=int(steps))


def _ready(path: str | None, instruction: str, model: str | None, device: str) -> tuple[Editor, Any]:
    if not path:
        raise ValueError("there is no picture. Upload one first.")
    if not instruction.strip():
        raise ValueError("there is no instruction. Say what to do, such as: make it snowy")
    if not model:
        raise ValueError("there is no editor. Train one with `ip2p run`, or give a model folder or a hub id.")
    return Editor(model, device=device), read_image(path)


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
    told = gr.Markdown(elem_id="found")
    gallery = gr.Gallery(label="Pairs", columns=3, object_fit="contain", elem_id="pairs", height="auto")
    opened: gr.State = gr.State(None)
    cards = Path(tempfile.mkdtemp(prefix="ip2p-page-"))
    atexit.register(shutil.rmtree, cards, ignore_errors=True)

    def open_source(name: str | None) -> Any:
        pairs = open_pairs(name or "")
        reasons = [ACCEPTED, *pairs.choices("reason")] if "reason" in pairs.table.column_names else []
        return (
            pairs,
            gr.update(choices=pairs.choices("edit_type"), value=[]),
            gr.update(choices=reasons, value=[]),
            gr.update(choices=pairs.scores(), value=None),
            1,
        )

    def show(
        pairs: Pairs | None, types: Any, reasons: Any, name: Any, least: Any, most: Any, text: str, at: Any
    ) -> Any:
        if pairs is None:
            return "", []
        wanted = Wanted(
            edit_types=types or (), verdicts=reasons or (), score=name or None, low=least, high=most, words=text
        )
        rows = find(pairs, wanted)
        pages = max(1, -(-len(rows) // PER_PAGE))
        start = (min(max(1, int(at or 1)), pages) - 1) * PER_PAGE
        shown = [_card(pairs, int(row), cards) for row in rows[start : start + PER_PAGE]]
        return f"{len(rows)} of {len(pairs.table)} pairs, {pages} pages", shown

    filters: list[Any] = [kinds, verdicts, score, low, high, words, number]
    load.click(friendly(open_source), source, [opened, kinds, verdicts, score, number]).then(
        friendly(show), [opened, *filters], [told, gallery]
    )
    typed = [each.submit for each in (low, high, words, number)]
    chosen = [each.input for each in (kinds, verdicts, score, low, high, number)]
    again = {"inputs": [opened, *filters], "outputs": [told, gallery], "trigger_mode": "always_last"}
    gr.on([*typed, words.blur, *chosen], friendly(show), **again)


def _card(pairs: Pairs, number: int, folder: Path) -> tuple[str, str]:
    """A pair's picture as a file that is written once: one that is written while it is served arrives broken."""
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
    table = gr.Dataframe(headers=list(TRIPLET_HEAD), interactive=False, wrap=True, elem_id="written")
    gr.on([write.click, caption.submit], friendly(write_rows), [config, caption, number], table)


def _runs_tab(root: Path) -> None:
    def rows() -> list[list[str]]:
        return describe_runs(find_runs(root))

    gr.Markdown(f"Runs below `{root}`, newest first.")
    kinds: Any = ["str"] * (len(HEAD) - 1) + ["markdown"]
    table = gr.Dataframe(rows(), headers=list(HEAD), datatype=kinds, interactive=False, elem_id="runs")
    gr.Button("Look again").click(rows, None, table)
