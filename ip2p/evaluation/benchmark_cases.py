"""Held-out edits from elsewhere: MagicBrush, Emu Edit's test set, datasets like our own, and anybody's pictures.

Pictures stay encoded until they are asked for, so that a benchmark's thousands fit into memory.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from ip2p.evaluation.cases import EditCase, Mask, Pixels
from ip2p.sources.rows import as_text, content_of

Layout = Literal["magicbrush", "emu_edit", "pairs", "pictures"]
PICTURES = ("original_image", "target_image", "mask")
WHITE = 250
"""Least value of the pixels that a mask without transparency marks."""


class StoredCase(EditCase):
    """A case that decodes its pictures whenever they are asked for; `load` takes a picture's name."""

    __slots__ = ("_load",)
    _load: Callable[[str], Any]

    def __init__(self, load: Callable[[str], Any], **texts: Any) -> None:
        for field in fields(EditCase):
            if field.name not in PICTURES:
                value = texts.get(field.name, "" if field.default is MISSING else field.default)
                object.__setattr__(self, field.name, value)
        object.__setattr__(self, "_load", load)

    def placed(self, previous: int | None, is_last: bool) -> StoredCase:
        """The same at a place of a session."""
        names = [field.name for field in fields(EditCase) if field.name not in PICTURES]
        texts = {name: getattr(self, name) for name in names}
        return StoredCase(self._load, **(texts | {"previous": previous, "is_last": is_last}))

    @property
    def original_image(self) -> Pixels:
        """Decoded anew."""
        found: Pixels = self._load("original_image")
        return found

    @property
    def target_image(self) -> Pixels | None:
        """Decoded anew."""
        found: Pixels | None = self._load("target_image")
        return found

    @property
    def mask(self) -> Mask | None:
        """Decoded anew."""
        found: Mask | None = self._load("mask")
        return found


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Cases and how they lay where they were found."""

    layout: Layout
    cases: list[EditCase]


def read_benchmark(
    source: str,
    *,
    split: str = "test",
    revision: str | None = None,
    num: int | None = None,
    captions: Path | None = None,
) -> Benchmark:
    """The cases of a folder, a .jsonl, parquet files or a hub id; whole sessions up to `num` cases, types in turn.

    `captions` is MagicBrush's file of local descriptions. ValueError where the source is of no known form.
    """
    path = Path(source).expanduser()
    if source == "photographs":
        return Benchmark("pictures", _chosen(_photographs(), num))
    if (path / "edit_sessions.json").is_file():
        return Benchmark("magicbrush", _chosen(_magicbrush_folder(path, captions), num))
    listing = path if path.suffix == ".jsonl" else path / "edits.jsonl"
    if listing.is_file():
        return Benchmark("pictures", _chosen(_listed(listing), num))
    return _read_table(source, split, revision, num, captions)


def _chosen(cases: Sequence[StoredCase], num: int | None) -> list[EditCase]:
    """Whole sessions, in turns from every edit type, up to `num` cases; `previous` counts within what is chosen."""
    sessions: dict[str, list[StoredCase]] = defaultdict(list)
    for number, case in enumerate(cases):
        sessions[case.session or f"case {number}"].append(case)
    turns: dict[str, int] = defaultdict(int)
    ordered: list[tuple[int, int, list[StoredCase]]] = []
    for place, session in enumerate(sessions.values()):
        kind = session[0].edit_type
        ordered.append((turns[kind], place, session))
        turns[kind] += 1
    chosen: list[EditCase] = []
    for _, _, session in sorted(ordered, key=lambda item: item[:2]):
        start, last = len(chosen), len(session) - 1
        if num is None or start + len(session) <= num:
            chosen += [
                case.placed(start + turn - 1 if turn else None, turn == last) for turn, case in enumerate(session)
            ]
    if not chosen:
        raise ValueError(f"the source holds no edits, or every session is longer than {num}. Ask for more.")
    return chosen


def _read_table(source: str, split: str, revision: str | None, num: int | None, captions: Path | None) -> Benchmark:
    from datasets import Image as ImageFeature

    from ip2p.sources.columns import open_dataset

    dataset = open_dataset(source, {}, split=split, revision=revision)
    layout, columns = _layout_of(dataset.column_names, source)
    for name in columns.values():
        if isinstance(dataset.features[name], ImageFeature):
            dataset = dataset.cast_column(name, ImageFeature(decode=False))
    pictures = [theirs for ours, theirs in columns.items() if ours in PICTURES]
    texts = dataset.remove_columns([name for name in dataset.column_names if name in pictures])
    told = _read_captions(captions)
    cases = [
        StoredCase(partial(_cell, dataset, number, columns), **_texts(row, columns, told))
        for number, row in enumerate(texts)
    ]
    return Benchmark(layout, _chosen(cases, num))


_MAGICBRUSH = {
    "original_image": "source_img",
    "target_image": "target_img",
    "mask": "mask_img",
    "edit_prompt": "instruction",
    "session": "img_id",
    "turn": "turn_index",
}
_EMU_EDIT = {
    "original_image": "image",
    "edit_prompt": "instruction",
    "original_prompt": "input_caption",
    "edited_prompt": "output_caption",
    "edit_type": "task",
}


def _layout_of(names: Sequence[str], source: str) -> tuple[Layout, dict[str, str]]:
    """Which dataset has such columns, and what ours are called there."""
    from ip2p.sources.columns import guess_columns

    known: tuple[tuple[Layout, dict[str, str]], ...] = (("magicbrush", _MAGICBRUSH), ("emu_edit", _EMU_EDIT))
    for layout, columns in known:
        needed = [theirs for ours, theirs in columns.items() if ours not in ("mask", "turn")]
        if all(name in names for name in needed):
            return layout, {ours: theirs for ours, theirs in columns.items() if theirs in names}
    try:
        columns = guess_columns(names)
    except ValueError as error:
        raise ValueError(f"{source} is no benchmark that is known: {error}") from error
    columns |= {name: name for name in ("original_prompt", "edited_prompt", "edit_type") if name in names}
    return "pairs", {{"edited_image": "target_image"}.get(ours, ours): theirs for ours, theirs in columns.items()}


def _texts(row: Mapping[str, Any], columns: Mapping[str, str], told: Mapping[str, Any]) -> dict[str, str]:
    names = ("edit_prompt", "original_prompt", "edited_prompt", "edit_type", "session")
    found = {name: as_text(row[columns[name]]) for name in names if name in columns}
    turn = row.get(columns.get("turn", ""))
    if turn is not None and told:
        found["edited_prompt"] = _caption(told, found["session"], f"{found['session']}-output{turn}.png")
    return {"edit_type": "other", **{name: text for name, text in found.items() if text}}


def _cell(dataset: Any, number: int, columns: Mapping[str, str], name: str) -> Any:
    """One picture of a row."""
    if name not in columns:
        return None
    content = content_of(dataset[number][columns[name]])
    if content is None:
        return None
    return read_mask(io.BytesIO(content)) if name == "mask" else read_pixels(io.BytesIO(content))


def _read_captions(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read the captions {path}: {error}. Give MagicBrush's local_descriptions.json."
        ) from error
    return found if isinstance(found, dict) else {}


def _caption(told: Mapping[str, Any], session: str, name: str) -> str:
    of_session = told.get(session)
    return as_text(of_session.get(name)) if isinstance(of_session, dict) else ""


def _magicbrush_folder(folder: Path, captions: Path | None) -> list[StoredCase]:
    """The unpacked test split: `edit_sessions.json` beside `images/<session>/<file>`."""
    names = ("local_descriptions.json", "local_captions.json")
    beside = next((folder / name for name in names if (folder / name).is_file()), None)
    told, cases = _read_captions(captions or beside), list[StoredCase]()
    for session, turns in json.loads((folder / "edit_sessions.json").read_text()).items():
        for turn in turns:
            files = {"original_image": turn["input"], "target_image": turn["output"], "mask": turn.get("mask")}
            paths = {name: folder / "images" / session / file for name, file in files.items() if file}
            caption = _caption(told, session, turn["output"])
            texts = {"edit_prompt": turn["instruction"], "edited_prompt": caption, "edit_type": "other"}
            cases.append(StoredCase(partial(_file, paths), session=session, **texts))
    return cases


def _listed(path: Path) -> list[StoredCase]:
    """Lines of `image, edit_prompt` and, where known, `target, mask, original_prompt, edited_prompt, edit_type`."""
    cases: list[StoredCase] = []
    for number, row in enumerate(_lines(path), start=1):
        if not isinstance(row, dict) or not row.get("image") or not row.get("edit_prompt"):
            raise ValueError(f"{path} line {number} must hold `image` and `edit_prompt`, got {row!r}.")
        files = {"original_image": row["image"], "target_image": row.get("target"), "mask": row.get("mask")}
        paths = {name: path.parent / str(file) for name, file in files.items() if file}
        missing = next((each for each in paths.values() if not each.is_file()), None)
        if missing is not None:
            raise ValueError(f"{path} line {number} names {missing}, which is no file. Paths count from the .jsonl.")
        texts = {name: as_text(row.get(name)) for name in ("original_prompt", "edited_prompt", "session")}
        kind = as_text(row.get("edit_type")) or "other"
        cases.append(StoredCase(partial(_file, paths), edit_prompt=str(row["edit_prompt"]), edit_type=kind, **texts))
    return cases


def _lines(path: Path) -> Iterator[Any]:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            if line.strip():
                yield json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} line {number} is no JSON: {error}.") from error


def _file(paths: Mapping[str, Path], name: str) -> Any:
    if name not in paths:
        return None
    return read_mask(paths[name]) if name == "mask" else read_pixels(paths[name])


def _photographs() -> list[StoredCase]:
    """Edits of the two photographs that scikit-learn ships, in words of our own."""
    from ip2p.presets import data_folder

    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        wish = "pip install 'ip2p[photographs]'"
        raise ValueError(f"the photographs come with scikit-learn. Install it with: {wish}") from error
    images = dict(zip(("china.jpg", "flower.jpg"), load_sample_images().images, strict=True))
    cases: list[StoredCase] = []
    for row in _lines(data_folder() / "photographs.jsonl"):
        pixels = np.asarray(images[row.pop("image")])
        cases.append(StoredCase(partial(_pixels, {"original_image": pixels}), **row))
    return cases


def _pixels(found: Mapping[str, Pixels], name: str) -> Pixels | None:
    return found.get(name)


def read_pixels(source: Path | io.BytesIO) -> Pixels:
    """An RGB picture, upright."""
    with Image.open(source) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def read_mask(source: Path | io.BytesIO) -> Mask:
    """Where a mask marks: what it makes transparent, or, where it makes nothing so, what is white in it."""
    with Image.open(source) as image:
        opaque = np.asarray(image.convert("RGBA"))
    through: Mask = opaque[..., 3] == 0
    white: Mask = opaque[..., :3].min(-1) >= WHITE
    return through if through.any() else white
