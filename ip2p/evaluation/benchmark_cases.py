"""Held-out edits from elsewhere: MagicBrush, Emu Edit's test set, datasets like our own, and anybody's pictures.

Pictures stay encoded until they are asked for, so that a benchmark's thousands fit into memory.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ip2p.evaluation.cases import EditCase, Mask
from ip2p.images import Picture, open_pixels, open_upright
from ip2p.sources.columns import EMU_EDIT, KNOWN_SCHEMAS, MAGICBRUSH_TURNS, guess_columns
from ip2p.sources.files import read_json_file
from ip2p.sources.location import locate
from ip2p.sources.rows import HubTable, ParquetTable, Row, Table, lay_out, open_table

Layout = Literal["magicbrush", "emu_edit", "pairs", "pictures"]
TEXTS = ("edit_prompt", "original_prompt", "edited_prompt", "edit_type", "session")
PICTURES = {"original_image": "original_image", "edited_image": "target_image", "mask": "mask"}
"""Columns of pictures to fields of a case."""
WHITE = 250
"""Least value of the pixels that a mask without transparency marks."""
MAGICBRUSH = KNOWN_SCHEMAS["osunlp/MagicBrush"] | MAGICBRUSH_TURNS


@dataclass(frozen=True, slots=True)
class Found:
    """An edit as it lies in a source: its texts, and how each picture is loaded."""

    texts: Mapping[str, str]
    pictures: Mapping[str, Callable[[], Any]]

    def placed(self, previous: int | None, is_last: bool) -> EditCase:
        """Makes the case at its place in a session."""
        fields: dict[str, Any] = {**dict.fromkeys(TEXTS, ""), **self.texts, **self.pictures}
        fields["edit_type"] = fields["edit_type"] or "other"
        return EditCase(**fields, previous=previous, is_last=is_last)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Cases, and the layout in which they were found."""

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
    if source == "photographs":
        return Benchmark("pictures", _choose(_photographs(), num))
    if (path / "edit_sessions.json").is_file():
        return Benchmark("magicbrush", _choose(_magicbrush_folder(path, captions), num))
    listing = path if path.suffix == ".jsonl" else path / "edits.jsonl"
    if listing.is_file():
        return Benchmark("pictures", _choose(_listed(listing), num))
    table = open_table(locate(source), split=split, revision=revision, any_split=True)
    layout, columns = _layout_of(table.names, source)
    return Benchmark(layout, _choose(_tabled(table, columns, _read_captions(captions)), num))


def _choose(edits: Sequence[Found], num: int | None) -> list[EditCase]:
    """Takes whole sessions, in turns from every edit type, up to `num` cases; `previous` counts within these."""
    sessions: dict[str, list[Found]] = defaultdict(list)
    for number, edit in enumerate(edits):
        sessions[edit.texts.get("session") or f"case {number}"].append(edit)
    turns: dict[str, int] = defaultdict(int)
    ordered: list[tuple[int, int, list[Found]]] = []
    for place, session in enumerate(sessions.values()):
        kind = session[0].texts.get("edit_type") or "other"
        ordered.append((turns[kind], place, session))
        turns[kind] += 1
    cases: list[EditCase] = []
    for _, _, session in sorted(ordered, key=lambda item: item[:2]):
        start, last = len(cases), len(session) - 1
        if num is None or start + len(session) <= num:
            cases += [
                edit.placed(start + turn - 1 if turn else None, turn == last) for turn, edit in enumerate(session)
            ]
    if not cases:
        raise ValueError(f"the source holds no edits, or every session is longer than {num}. Ask for more.")
    return cases


def _layout_of(names: Sequence[str], source: str) -> tuple[Layout, dict[str, str]]:
    """Recognises whose dataset has such columns; maps our names, `session` and `turn` among them, to those at hand."""
    known: tuple[tuple[Layout, dict[str, str]], ...] = (("magicbrush", MAGICBRUSH), ("emu_edit", EMU_EDIT))
    for layout, columns in known:
        if all(theirs in names for ours, theirs in columns.items() if ours not in MAGICBRUSH_TURNS):
            present = {ours: theirs for ours, theirs in columns.items() if theirs in names}
            return layout, present | ({"session": present["group"]} if layout == "magicbrush" else {})
    try:
        columns = guess_columns(names)
    except ValueError as error:
        raise ValueError(f"{source} is not a known benchmark: {error}") from error
    return "pairs", columns | {
        name: name for name in ("original_prompt", "edited_prompt", "edit_type") if name in names
    }


def _tabled(table: Table, columns: Mapping[str, str], captions: Mapping[str, Any]) -> list[Found]:
    pictures = {field: columns[name] for name, field in PICTURES.items() if name in columns}
    texts = {name: theirs for name, theirs in columns.items() if name in (*TEXTS, "turn")}
    rows = [_texts(row, texts, captions) for row in table.read(list(texts.values()))]
    if isinstance(table, ParquetTable):
        table = HubTable(lay_out(table, list(dict.fromkeys(pictures.values())), []), "the benchmark")
    return [
        Found(row, {field: partial(_cell, table, number, theirs, field) for field, theirs in pictures.items()})
        for number, row in enumerate(rows)
    ]


def _texts(row: Row, columns: Mapping[str, str], captions: Mapping[str, Any]) -> dict[str, str]:
    texts = {name: row.text(theirs) for name, theirs in columns.items() if name != "turn"}
    turn = row.values.get(columns.get("turn", ""))
    if turn is not None and captions:
        texts["edited_prompt"] = _caption(captions, texts["session"], f"{texts['session']}-output{turn}.png")
    return texts


def _cell(table: Table, number: int, column: str, field: str) -> Any:
    picture = table.row(number, [column]).picture(column)
    return None if picture is None else _open(picture, field)


def _open(picture: Picture, field: str) -> Any:
    return read_mask(picture) if field == "mask" else open_pixels(picture)


def _read_captions(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        captions = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read the captions {path}: {error}. Give MagicBrush's local_descriptions.json."
        ) from error
    return captions if isinstance(captions, dict) else {}


def _caption(captions: Mapping[str, Any], session: str, name: str) -> str:
    of_session = captions.get(session)
    return _as_text(of_session.get(name)) if isinstance(of_session, dict) else ""


def _as_text(value: Any) -> str:
    return Row({"text": value}, "").text("text")


def _magicbrush_folder(folder: Path, captions: Path | None) -> list[Found]:
    """Reads the unpacked test split: `edit_sessions.json` beside `images/<session>/<file>`."""
    names = ("local_descriptions.json", "local_captions.json")
    beside = next((folder / name for name in names if (folder / name).is_file()), None)
    by_session, edits = _read_captions(captions or beside), list[Found]()
    for session, turns in json.loads((folder / "edit_sessions.json").read_text(encoding="utf-8")).items():
        for turn in turns:
            files = {"original_image": turn["input"], "target_image": turn["output"], "mask": turn.get("mask")}
            paths = {name: folder / "images" / session / file for name, file in files.items() if file}
            caption = _caption(by_session, session, turn["output"])
            texts = {"session": session, "edit_prompt": turn["instruction"], "edited_prompt": caption}
            edits.append(Found(texts, _loaders(paths)))
    return edits


def _listed(path: Path) -> list[Found]:
    """Reads lines of `image, edit_prompt` and perhaps `target, mask, original_prompt, edited_prompt, edit_type`."""
    edits: list[Found] = []
    for number, row in read_json_file(path):
        if not isinstance(row, dict) or not row.get("image") or not row.get("edit_prompt"):
            raise ValueError(f"{path} line {number} must hold `image` and `edit_prompt`, got {row!r}.")
        files = {"original_image": row["image"], "target_image": row.get("target"), "mask": row.get("mask")}
        paths = {name: path.parent / str(file) for name, file in files.items() if file}
        missing = next((file for file in paths.values() if not file.is_file()), None)
        if missing is not None:
            raise ValueError(f"{path} line {number} names {missing}, which is not a file. Paths count from the .jsonl.")
        texts = {name: _as_text(row.get(name)) for name in TEXTS} | {"edit_prompt": str(row["edit_prompt"])}
        edits.append(Found(texts, _loaders(paths)))
    return edits


def _loaders(paths: Mapping[str, Path]) -> dict[str, Callable[[], Any]]:
    return {field: partial(_open, path, field) for field, path in paths.items()}


def _photographs() -> list[Found]:
    """Describes edits of the two photographs that scikit-learn ships, in words of our own."""
    from ip2p.presets import data_folder

    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        command = "pip install 'ip2p[photographs]'"
        raise ValueError(f"the photographs come with scikit-learn. Install it with: {command}") from error
    images = dict(zip(("china.jpg", "flower.jpg"), load_sample_images().images, strict=True))
    rows = [dict(row) for _, row in read_json_file(data_folder() / "photographs.jsonl")]
    return [Found(row, {"original_image": partial(np.asarray, images[row.pop("image")])}) for row in rows]


def read_mask(source: Picture) -> Mask:
    """Reads where a mask marks: what it makes transparent, or else what is white in it."""
    opaque = np.asarray(open_upright(source).convert("RGBA"))
    through: Mask = opaque[..., 3] == 0
    white: Mask = opaque[..., :3].min(-1) >= WHITE
    return through if through.any() else white
