"""`ip2p edit` and `ip2p app`: edits of one picture, a folder or a list, and a page to make them on."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import re
import time
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from ip2p.config import EvaluationConfig
from ip2p.config.files import evaluation_of
from ip2p.images import IMAGE_SUFFIXES, open_picture
from ip2p.sources.edits import read_edits


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditArguments:
    """Arguments of `ip2p edit`."""

    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """A picture, a folder of pictures, or a .jsonl of `image`, `edit_prompt` and optionally `seed` and `output`."""
    instruction: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INSTRUCTION")]
    """The edit, in quotes; "" if a .jsonl has it."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Picture to write, or a folder if there are several."""
    model: str
    """Model folder of a run (RUN/model), or a hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    also: tuple[str, ...] = ()
    """More instructions for the same pictures."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the noise, one edit for each."""
    guidance_scale: tuple[float, ...] = ()
    """Text guidance scales, one or several. Default: the run's, or 7.5."""
    image_guidance_scale: tuple[float, ...] = ()
    """Image guidance scales, one or several. Default: the run's, or 1.5."""
    num_inference_steps: int | None = None
    """Denoising steps. Default: the run's, or 20."""
    resolution: int | None = None
    """Short side in pixels during the edit. Default: the model's own."""
    batch_size: int = 8
    """Edits per batch."""
    device: str = "auto"
    """Device to edit on."""
    dtype: str = "float32"
    """Precision: float32, float16, bfloat16 or auto."""
    overwrite: bool = False
    """Overwrite existing pictures."""
    skip_existing: bool = False
    """Keep existing pictures and make the others, to resume edits that were interrupted."""


@dataclasses.dataclass(frozen=True)
class Edit:
    """One edit of one picture."""

    image: Path
    edit_prompt: str
    seed: int
    guidance_scale: float
    image_guidance_scale: float
    output: Path


def edit(options: EditArguments) -> None:
    """Applies instructions to pictures."""
    if options.overwrite and options.skip_existing:
        raise ValueError("--overwrite replaces pictures and --skip-existing keeps them, got both. Give one.")
    usual = evaluation_of(Path(options.model))
    edits = list(plan_edits(options, usual))
    existing = {item.output for item in edits if item.output.exists() and not options.overwrite}
    if existing and not options.skip_existing:
        raise ValueError(f"{min(existing)} exists already. Give another name, --overwrite or --skip-existing.")
    started = time.monotonic()
    kept = set(filter(_is_whole, existing))
    if len(kept) < len(edits):
        _edit_batches(options, usual, edits, kept)
    what = str(edits[0].output) if len(edits) == 1 else f"{len(edits)} pictures in {options.output}"
    skipped = f", {len(kept)} skipped as they exist" * bool(kept)
    print(f"{what}{skipped} (in {time.monotonic() - started:.1f} s)")


def _is_whole(path: Path) -> bool:
    try:
        open_picture(path)
    except ValueError:
        return False
    return True


def _edit_batches(options: EditArguments, usual: EvaluationConfig, edits: Sequence[Edit], kept: set[Path]) -> None:
    """Makes the edits that are not kept. Batches are those of the whole list, so that every picture has the same bytes.

    In other batches a device may round differently; hence a batch that lacks a picture is computed whole.
    """
    from ip2p.editing import Editor, Knobs, write_image

    editor = Editor(options.model, device=options.device, dtype=options.dtype, revision=options.revision)
    scales = attrgetter("guidance_scale", "image_guidance_scale")
    with tqdm(total=len(edits), desc="edit", unit="picture", disable=None) as bar:
        for (text, image), group in itertools.groupby(sorted(edits, key=scales), key=scales):
            knobs = Knobs(
                num_inference_steps=options.num_inference_steps or usual.num_inference_steps,
                guidance_scale=text,
                image_guidance_scale=image,
                resolution=options.resolution,
            )
            while batch := list(itertools.islice(group, options.batch_size)):
                if kept.issuperset(item.output for item in batch):
                    bar.update(len(batch))
                    continue
                edited = editor.edit_all(
                    [item.image for item in batch],
                    [item.edit_prompt for item in batch],
                    seeds=[item.seed for item in batch],
                    knobs=knobs,
                    batch_size=options.batch_size,
                    on_batch=bar.update,
                )
                for item, picture in zip(batch, edited, strict=True):
                    if item.output not in kept:
                        write_image(picture, item.output)


def plan_edits(options: EditArguments, usual: EvaluationConfig) -> Iterator[Edit]:
    """Lists every edit to make. ValueError if there is none, or if two have one name."""
    texts = options.guidance_scale or (usual.guidance_scale,)
    images = options.image_guidance_scale or (usual.image_guidance_scale,)
    rows = list(_rows(options))
    if not rows:
        raise ValueError(f"{options.input} holds no picture. Give a picture, a folder of pictures or a .jsonl.")
    is_one = len(rows) == len(texts) == len(images) == 1 and rows[0].get("output") is None and options.output.suffix
    names: set[str] = set()
    for row, text, image in itertools.product(rows, texts, images):
        name = Path(row.get("output") or _name(row, options))
        scales = f"-t{text:g}" * (len(texts) > 1) + f"-i{image:g}" * (len(images) > 1)
        file = f"{name.stem}{scales}{name.suffix or '.png'}"
        if file in names:
            raise ValueError(f"two edits would be called {file}. Give each an `output` in a .jsonl.")
        names.add(file)
        output = options.output if is_one else options.output / file
        yield Edit(row["image"], row["edit_prompt"], row["seed"], text, image, output)


def _rows(options: EditArguments) -> Iterator[dict[str, Any]]:
    if options.input.suffix == ".jsonl":
        yield from _read_list(options.input)
        return
    paths = sorted(options.input.iterdir()) if options.input.is_dir() else [options.input]
    if options.input.is_dir():
        paths = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")]
    for path, prompt, seed in itertools.product(paths, (options.instruction, *options.also), options.seeds):
        yield {"image": path, "edit_prompt": prompt, "seed": seed}


def _read_list(path: Path) -> Iterator[dict[str, Any]]:
    for row in read_edits(path, "image"):
        seed, output = row.values.get("seed", 0), row.values.get("output")
        if not isinstance(seed, int) or not isinstance(output, str | None):
            raise ValueError(f"{row.where} must hold a whole `seed` and a text `output`, got {seed!r} and {output!r}.")
        yield {"image": row.picture("image"), "edit_prompt": row.text("edit_prompt"), "seed": seed, "output": output}


def _name(row: dict[str, Any], options: EditArguments) -> str:
    """Names an edit after its picture and what differs between its edits."""
    words = re.sub(r"[^a-z0-9]+", "-", row["edit_prompt"].lower()).strip("-")[:40]
    parts = [row["image"].stem, *([words] if options.also or options.input.suffix == ".jsonl" else [])]
    parts += [f"seed{row['seed']}"] if len(options.seeds) > 1 else []
    return "-".join(parts) + ".png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppArguments:
    """Arguments of `ip2p app`."""

    runs: Path = Path("runs")
    """Folder of the runs to show."""
    model: str | None = None
    """Editor selected on start: a model folder or a hub id. Default: the newest run's."""
    device: str = "auto"
    """Device to edit on."""
    port: int | None = None
    """Port on 127.0.0.1. Default: the first free one from 7860."""
    share: bool = False
    """Make the page public through gradio's relay."""


def app(options: AppArguments) -> None:
    """Opens a web page on this machine: edit pictures, browse pairs, compare runs."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs gradio. Install it: pip install 'ip2p[app]'")
    from ip2p.app import build_page, serve

    page = build_page(options.runs, options.model, options.device)
    address = serve(page, options.runs, port=options.port, share=options.share, wait=False)
    print(f"The page is at {address} (Ctrl-C ends it).", flush=True)
    page.block_thread()
