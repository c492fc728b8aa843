"""The tab *Edit*: a picture, an instruction and an editor with its guidances; results, their history and a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image

from ip2p.app.address import BOUNDS, Settings, default_settings, read_address, write_address
from ip2p.app.browsing import NUM_SAMPLES, sample_edits
from ip2p.app.mistakes import friendly
from ip2p.app.tables import find_models
from ip2p.editing.editor import Editor, Knobs
from ip2p.images import open_picture

HISTORY = 12
MOST_ELONGATED = 16
"""Ratio of a picture's sides above which it is refused, since the short side is enlarged to the model's."""
TEXT_FACTORS, IMAGE_SCALES = (0.5, 1.0, 1.5), (1.2, 1.5, 1.8)
"""Rows and columns of the grid: factors of the chosen text guidance, and image guidances."""
SET_ADDRESS = """(query) => {
  const url = new URL(location);
  for (const [name, value] of new URLSearchParams(query)) url.searchParams.set(name, value);
  history.replaceState(null, "", url);
}"""
Update = dict[str, Any]
"""New properties of a component."""
Edits = list[tuple[Image.Image, str]]
"""Edited pictures with their titles."""
Samples = list[tuple[str, str]]
"""Paths of pictures with an instruction for each."""


class Form(NamedTuple):
    """The components that a person fills in, in the order in which the callbacks take them."""

    picture: gr.Image
    instruction: gr.Textbox
    model: gr.Dropdown
    text: gr.Slider
    image: gr.Slider
    steps: gr.Slider
    seed: gr.Number


def edit_tab(page: gr.Blocks, calls: EditCalls) -> None:
    """Lays the tab out and connects it."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            picture = gr.Image(label="Picture", type="filepath", format="png", elem_id="picture", height=280)
            picture.preprocess = uploaded_path  # type: ignore[method-assign]
            samples = _gallery("Samples of the run", NUM_SAMPLES, "samples", allow_preview=False, visible=False)
            instruction = gr.Textbox("", label="Instruction", placeholder="make it snowy", elem_id="instruction")
            with gr.Row():
                edit = gr.Button("Edit", variant="primary", elem_id="edit")
                grid = gr.Button("Grid of guidances", elem_id="grid")
            form = Form(picture, instruction, *_lay_out_settings())
        with gr.Column(scale=2, min_width=320):
            result = gr.ImageSlider(label="Before and after", type="pil", format="png", elem_id="result")
            cells = _gallery("Text guidance by row, image guidance by column", len(IMAGE_SCALES), "guidances")
            gallery = _gallery("History", 4, "history")
    history, offered, sample = gr.State([]), gr.State([]), gr.State(None)
    address = gr.Textbox(visible="hidden")

    settings = form[1:]
    edited = gr.on(
        [edit.click, form.instruction.submit],
        friendly(calls.edit),
        [*form, history],
        [result, gallery, history],
        show_progress_on=result,
        scroll_to_output=True,
    )
    compared = grid.click(friendly(calls.grid), [*form], cells, show_progress_on=result)
    for event in (edited, compared):
        written = event.success(calls.write_address, [*settings, sample], address, show_progress="hidden")
        written.success(None, address, None, js=SET_ADDRESS)
    form.model.input(calls.default_knobs, form.model, [form.text, form.image, form.steps])
    form.model.input(calls.list_samples, form.model, [samples, offered], show_progress="hidden")
    samples.select(calls.choose_sample, offered, [form.picture, form.instruction, sample], show_progress="hidden")
    gr.on([form.picture.input, form.model.input], calls.forget_sample, None, sample, show_progress="hidden")
    page.load(calls.restore, None, [*form, samples, offered, sample], show_progress="hidden")


def _lay_out_settings() -> tuple[gr.Dropdown, gr.Slider, gr.Slider, gr.Slider, gr.Number]:
    model = gr.Dropdown([], label="Editor", allow_custom_value=True, elem_id="editor")
    text, image = _slider("guidance_scale", "Text guidance"), _slider("image_guidance_scale", "Image guidance")
    with gr.Row():
        steps = _slider("num_inference_steps", "Steps")
        low, high, _ = BOUNDS["seed"]
        seed = gr.Number(0, precision=0, minimum=low, maximum=high, label="Seed", min_width=120)
    return model, text, image, steps, seed


def _slider(name: str, label: str) -> gr.Slider:
    low, high, step = BOUNDS[name]
    return gr.Slider(low, high, getattr(Settings(), name), step=step, label=label)


def _gallery(label: str, columns: int, name: str, allow_preview: bool = True, visible: bool = True) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        columns=columns,
        fit_columns=False,
        object_fit="contain",
        height="auto",
        format="png",
        elem_id=name,
        buttons=["download", "fullscreen"],
        allow_preview=allow_preview,
        visible=visible,
    )


def uploaded_path(payload: ImageData | None) -> str | None:
    """Hands over the file as it was uploaded; gradio would open it, and end in a traceback if it is broken."""
    return payload.path if payload else None


PROGRESS = gr.Progress()
"""The default by which gradio knows the argument that reports progress."""


@dataclass(frozen=True)
class EditCalls:
    """The callbacks, over the editors of the runs below `root`."""

    root: Path
    model: str | None
    """The editor selected on start; the newest run's by default."""
    device: str
    folder: Path
    """Where sample pictures are written."""

    def restore(self, request: gr.Request) -> tuple[Any, ...]:
        """Fills the form on load from the address; without one, on a sample picture of the first editor's run."""
        models = list(dict.fromkeys([*([self.model] if self.model else []), *find_models(self.root)]))
        settings = read_address(dict(request.query_params), models[0] if models else "")
        gallery, samples = self.list_samples(settings.model)
        number = settings.sample if settings.sample is not None and settings.sample < len(samples) else None
        path, instruction = (None, "") if number is None else samples[number]
        return (
            path,
            settings.instruction or instruction,
            gr.update(choices=models, value=settings.model or None),
            settings.guidance_scale,
            settings.image_guidance_scale,
            settings.num_inference_steps,
            settings.seed,
            gallery,
            samples,
            number,
        )

    def default_knobs(self, model: str | None) -> tuple[float, float, int]:
        """Returns text guidance, image guidance and steps that an editor was evaluated with, else the defaults."""
        settings = default_settings(model or "")
        return settings.guidance_scale, settings.image_guidance_scale, settings.num_inference_steps

    def list_samples(self, model: str | None) -> tuple[Update, Samples]:
        """Offers pictures of the run of an editor; none if it has no run."""
        samples = sample_edits(model or "", self.folder)
        return gr.update(value=samples, visible=bool(samples), selected_index=None), samples

    def choose_sample(self, samples: Samples, event: gr.SelectData) -> tuple[str, str, int]:
        """Puts a sample picture and its instruction into the form."""
        return (*samples[event.index], event.index)

    def forget_sample(self) -> None:
        """Notes that the picture is the user's own, or a sample of another editor's run."""

    def write_address(
        self, instruction: str, model: str, text: float, image: float, steps: float, seed: float, sample: int | None
    ) -> str:
        """Returns the query that restores these settings."""
        return write_address(
            Settings(
                instruction=instruction,
                model=model,
                guidance_scale=text,
                image_guidance_scale=image,
                num_inference_steps=int(steps),
                seed=int(seed or 0),
                sample=sample,
            )
        )

    def edit(
        self,
        picture: str | None,
        instruction: str | None,
        model: str | None,
        text: float,
        image: float,
        steps: float,
        seed: float | None,
        history: Edits,
        progress: gr.Progress = PROGRESS,
    ) -> tuple[tuple[Image.Image, Image.Image], Edits, Edits]:
        """Makes one edit; returns the picture before and after, and the history twice, to show and to keep."""
        editor, before, knobs, instruction = self._prepare(picture, instruction, model, text, image, steps, progress)
        edited = editor(
            before, instruction, seed=int(seed or 0), knobs=knobs, on_step=_counter(progress, knobs.num_inference_steps)
        )
        title = f"{instruction} (text {text:g}, image {image:g}, seed {seed or 0:g})"
        history = [(edited, title), *history][:HISTORY]
        return (before, edited), history, history

    def grid(
        self,
        picture: str | None,
        instruction: str | None,
        model: str | None,
        text: float,
        image: float,
        steps: float,
        seed: float | None,
        progress: gr.Progress = PROGRESS,
    ) -> Edits:
        """Makes an edit per text guidance and image guidance."""
        editor, before, knobs, instruction = self._prepare(picture, instruction, model, text, image, steps, progress)
        scales = tuple(round(text * factor, 1) for factor in TEXT_FACTORS)
        rows = editor.edit_grid(
            before,
            instruction,
            guidance_scales=scales,
            image_guidance_scales=IMAGE_SCALES,
            seed=int(seed or 0),
            knobs=knobs,
            on_step=_counter(progress, len(scales) * len(IMAGE_SCALES) * knobs.num_inference_steps),
        )
        return [
            (edited, f"text {scale:g}, image {image_scale:g}")
            for scale, row in zip(scales, rows, strict=True)
            for image_scale, edited in zip(IMAGE_SCALES, row, strict=True)
        ]

    def _prepare(
        self,
        path: str | None,
        instruction: str | None,
        model: str | None,
        text: float,
        image: float,
        steps: float,
        progress: gr.Progress,
    ) -> tuple[Editor, Image.Image, Knobs, str]:
        if not path:
            raise ValueError("there is no picture to edit. Upload a picture first.")
        if not instruction or not instruction.strip():
            raise ValueError("there is no instruction. Say what to do, such as: make it snowy")
        if not model:
            raise ValueError("there is no editor. Train one with `ip2p run`, or give a model folder or a hub id.")
        picture = _open_upload(Path(path))
        progress(0, desc=f"loading {model}")
        knobs = Knobs(guidance_scale=text, image_guidance_scale=image, num_inference_steps=int(steps))
        return Editor(model, device=self.device), picture, knobs, instruction


def _open_upload(path: Path) -> Image.Image:
    """Opens an uploaded picture. ValueError if it does not decode, or if an edit of it would take hours."""
    try:
        picture = open_picture(path)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"cannot read {path.name}: {reason}. Upload another picture, such as a .png.") from error
    if max(picture.size) > MOST_ELONGATED * min(picture.size):
        width, height = picture.size
        raise ValueError(
            f"{path.name} is {width} x {height} pixels; one side may be {MOST_ELONGATED} times the other. Crop it."
        )
    return picture


def _counter(progress: gr.Progress, total: int) -> Callable[[], object]:
    """Returns the callback that reports each denoising step."""
    numbers = count(1)
    return lambda: progress((next(numbers), total), desc="editing", unit="steps")
