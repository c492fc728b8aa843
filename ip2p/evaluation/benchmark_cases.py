"""Reads held-out edits from elsewhere: MagicBrush, Emu Edit's test set, datasets like ours, and pictures of any kind.

Pictures stay encoded until they are needed, so that a benchmark's thousands fit into memory.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ip2p.evaluation.cases import EditCase, Mask, Pixels
from ip2p.images import Picture, open_pixels, read_mask
from ip2p.presets import data_folder
from ip2p.sources.columns import EMU_EDIT, FURTHER_PICTURES, KNOWN_SCHEMAS, MAGICBRUSH_TURN, guess_columns
from ip2p.sources.edits import read_edits
from ip2p.sources.files import read_json_file
from ip2p.sources.location import locate
from ip2p.sources.rows import HubTable, ParquetTable, Row, Table, lay_out, open_table

logger = logging.getLogger(__name__)

Layout = Literal["magicbrush", "emu_edit", "pairs", "pictures"]
TEXTS = ("edit_prompt", "original_prompt", "edited_prompt", "edit_type", "session")
PICTURES = {"original_image": "original_image", "edited_image": "target_image", "mask_image": "mask"}
"""Columns of pictures to fields of a case."""
MAGICBRUSH = KNOWN_SCHEMAS["osunlp/MagicBrush"] | MAGICBRUSH_TURN
Captions = Mapping[str, Row]
"""A row for each of MagicBrush's sessions: file names of outputs to their captions."""


@dataclass(frozen=True, slots=True)
class SourceEdit:
    """An edit as it lies in a source: its texts, and how each picture is loaded."""

    texts: Mapping[str, str]
    pictures: Mapping[str, Callable[[], Any]]

    def as_case(self, previous: int | None, is_last: bool) -> EditCase:
        """Makes the case, at its place in a session."""
        fields: dict[str, Any] = {**dict.fromkeys(TEXTS, ""), **self.texts, **self.pictures}
        fields["edit_type"] = fields["edit_type"] or "other"
        return EditCase(**fields, previous=previous, is_last=is_last)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Cases, and the layout of the source that holds them."""

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
    """Reads the cases of a folder, a .jsonl, parquet files or a hub id: whole sessions up to `num`, types in turn.

    `captions` is MagicBrush's file of local descriptions. ValueError if the source is of no known form.
    """
    path = Path(source).expanduser()
    listing = path if path.suffix == ".jsonl" else path / "edits.jsonl"
    layout: Layout = "pictures"
    if source == "photographs":
        edits = _read_photographs()
    elif (path / "edit_sessions.json").is_file():
        layout, edits = "magicbrush", _read_magicbrush(path, captions)
    elif listing.is_file():
        edits = _read_listing(listing)
    else:
        table = open_table(locate(source), split=split, revision=revision, any_split=True)
        layout, columns = _layout_of(table.names, source)
        edits = _read_table(table, columns, _read_captions(captions))
    return Benchmark(layout, _choose(edits, num))


def _choose(edits: Sequence[SourceEdit], num: int | None) -> list[EditCase]:
    """Takes whole sessions, in turns from every edit type, up to `num` cases; `previous` counts within these."""
    sessions: dict[str, list[SourceEdit]] = defaultdict(list)
    for number, edit in enumerate(edits):
        sessions[edit.texts.get("session") or f"case {number}"].append(edit)
    by_type: dict[str, list[tuple[int, list[SourceEdit]]]] = defaultdict(list)
    for place, session in enumerate(sessions.values()):
        by_type[session[0].texts.get("edit_type") or "other"].append((place, session))
    ordered = [(turn, place, session) for group in by_type.values() for turn, (place, session) in enumerate(group)]
    cases: list[EditCase] = []
    for _, _, session in sorted(ordered, key=lambda item: item[:2]):
        start, last = len(cases), len(session) - 1
        if num is None or start + len(session) <= num:
            cases += [
                edit.as_case(start + turn - 1 if turn else None, turn == last) for turn, edit in enumerate(session)
            ]
    if not cases:
        raise ValueError(f"the source holds no edits, or every session has more than {num}. Raise --num.")
    return cases


def _layout_of(names: Sequence[str], source: str) -> tuple[Layout, dict[str, str]]:
    """Recognises a dataset by its columns; maps our names, `session` and `turn` included, to the columns."""
    benchmarks: dict[Layout, dict[str, str]] = {"magicbrush": MAGICBRUSH, "emu_edit": EMU_EDIT}
    optional = (*MAGICBRUSH_TURN, *FURTHER_PICTURES)
    for layout, columns in benchmarks.items():
        if all(theirs in names for ours, theirs in columns.items() if ours not in optional):
            present = {ours: theirs for ours, theirs in columns.items() if theirs in names}
            return layout, present | ({"session": present["group"]} if layout == "magicbrush" else {})
    try:
        columns = guess_columns(names)
    except ValueError as error:
        raise ValueError(f"{source} is not a known benchmark: {error}") from error
    return "pairs", columns | {
        name: name for name in ("original_prompt", "edited_prompt", "edit_type") if name in names
    }


def _read_table(table: Table, columns: Mapping[str, str], captions: Captions) -> list[SourceEdit]:
    pictures = {field: columns[name] for name, field in PICTURES.items() if name in columns}
    names = {name: theirs for name, theirs in columns.items() if name in (*TEXTS, "turn")}
    rows = list(table.read(list(names.values())))
    if isinstance(table, ParquetTable):
        table = HubTable(lay_out(table, list(dict.fromkeys(pictures.values())), []), "the benchmark")
    edits = []
    for number, row in enumerate(rows):
        if row.wording(names["edit_prompt"]) is None:
            logger.warning("left out %s: no instruction", row.where)
            continue
        texts = {name: row.text(theirs) for name, theirs in names.items()}
        if (turn := texts.pop("turn", "")) and captions:
            texts["edited_prompt"] = _caption(captions, texts["session"], f"{texts['session']}-output{turn}.png")
        loaders = {
            field: partial(_read_cell, table, number, theirs, field, row.where) for field, theirs in pictures.items()
        }
        edits.append(SourceEdit(texts, loaders))
    return edits


def _read_cell(table: Table, number: int, column: str, field: str, where: str) -> Pixels | Mask | None:
    picture = table.row(number, [column]).picture(column)
    if picture is None and field == "original_image":
        raise ValueError(f"{where} has no picture in {column}. Remove the row or add the picture.")
    return None if picture is None else _read_picture(picture, field, where)


def _read_picture(picture: Picture, field: str, where: str) -> Pixels | Mask:
    try:
        return read_mask(picture) if field == "mask" else open_pixels(picture)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _read_captions(path: Path | None) -> Captions:
    if path is None:
        return {}
    try:
        captions = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read the captions {path}: {error}. Give MagicBrush's local_descriptions.json."
        ) from error
    sessions = captions.items() if isinstance(captions, dict) else ()
    return {session: Row(values, str(path)) for session, values in sessions if isinstance(values, dict)}


def _caption(captions: Captions, session: str, name: str) -> str:
    return captions[session].text(name) if session in captions else ""


def _read_magicbrush(folder: Path, captions_file: Path | None) -> list[SourceEdit]:
    """Reads the unpacked test split: `edit_sessions.json` beside `images/<session>/<file>`."""
    names = ("local_descriptions.json", "local_captions.json")
    beside = next((folder / name for name in names if (folder / name).is_file()), None)
    captions, edits = _read_captions(captions_file or beside), list[SourceEdit]()
    for session, turns in json.loads((folder / "edit_sessions.json").read_text(encoding="utf-8")).items():
        for turn in turns:
            pictures = {"original_image": turn["input"], "target_image": turn["output"], "mask": turn.get("mask")}
            caption = _caption(captions, session, turn["output"])
            texts = {"session": session, "edit_prompt": turn["instruction"], "edited_prompt": caption}
            files = {field: folder / "images" / session / name for field, name in pictures.items() if name}
            edits.append(SourceEdit(texts, _loaders(files)))
    return edits


def _read_listing(path: Path) -> list[SourceEdit]:
    """Reads lines of `image, edit_prompt` and perhaps `target, mask, original_prompt, edited_prompt, edit_type`."""
    columns = {"original_image": "image", "target_image": "target", "mask": "mask"}
    return [
        SourceEdit(
            {name: row.text(name) for name in TEXTS},
            _loaders({field: row.picture(column) for field, column in columns.items()}),
        )
        for row in read_edits(path, *columns.values())
    ]


def _loaders(files: Mapping[str, bytes | Path | None]) -> dict[str, Callable[[], Pixels | Mask]]:
    return {field: partial(_read_picture, file, field, str(file)) for field, file in files.items() if file}


def _read_photographs() -> list[SourceEdit]:
    """Reads our edits of the two photographs that scikit-learn ships."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        command = "pip install 'ip2p[photographs]'"
        raise ValueError(f"the photographs come with scikit-learn. Install it with: {command}") from error
    images = dict(zip(("china.jpg", "flower.jpg"), load_sample_images().images, strict=True))
    rows = [dict(row) for _, row in read_json_file(data_folder() / "photographs.jsonl")]
    return [SourceEdit(row, {"original_image": partial(np.asarray, images[row.pop("image")])}) for row in rows]
