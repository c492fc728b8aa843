"""MagicBrush (Zhang et al., 2023): sessions of edits with target images, measured edit by edit and at their ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ip2p.config import EvaluationConfig
from ip2p.evaluation.benchmark_cases import file_loaders, table_edits
from ip2p.evaluation.benchmarks import Asked, Benchmark, SourceEdit, usual_setting
from ip2p.evaluation.cases import EditCase
from ip2p.evaluation.parts import Part, session_slices, slices
from ip2p.sources.columns import KNOWN_SCHEMAS, MAGICBRUSH_TURN, OPTIONAL, fitting
from ip2p.sources.row import Row, Table

SESSIONS = "edit_sessions.json"
CAPTIONS = ("local_descriptions.json", "local_captions.json")
COLUMNS = KNOWN_SCHEMAS["osunlp/MagicBrush"]
OUR_TEXTS = {name: name for name in (*OPTIONAL, "edit_type")}
"""What sessions of our own runs have beside MagicBrush's columns."""
Captions = Mapping[str, Row]
"""A row for each session: file names of outputs to their captions."""


class MagicBrush(Benchmark):
    """Compares with target images."""

    name = "magicbrush"
    order = 10
    words = "MagicBrush's protocol: against the target, edit by edit, and at the end of each session"
    published = {"l1": "L1", "l2": "L2", "clip_target": "CLIP-I", "dino_target": "DINO", "clip_edited": "CLIP-T"}
    takes = ("curve",)
    needs = "compares with target images"

    def read(self, asked: Asked) -> list[SourceEdit] | None:
        """Reads the unpacked test split: `edit_sessions.json` beside `images/<session>/<file>`."""
        folder = asked.path
        if not (folder / SESSIONS).is_file():
            return None
        beside = next((folder / name for name in CAPTIONS if (folder / name).is_file()), None)
        captions, edits = _read_captions(asked.captions or beside), list[SourceEdit]()
        for session, turns in json.loads((folder / SESSIONS).read_text(encoding="utf-8")).items():
            for turn in turns:
                pictures = {"original_image": turn["input"], "target_image": turn["output"], "mask": turn.get("mask")}
                caption = _caption(captions, session, turn["output"])
                texts = {"session": session, "edit_prompt": turn["instruction"], "edited_prompt": caption}
                files = {field: folder / "images" / session / name for field, name in pictures.items() if name}
                edits.append(SourceEdit(texts, file_loaders(files)))
        return edits

    def read_table(self, table: Table, asked: Asked) -> list[SourceEdit] | None:
        """Reads the dataset's columns."""
        columns = fitting(COLUMNS, table.names, optional=MAGICBRUSH_TURN | OUR_TEXTS)
        if columns is None:
            return None
        captions, turn = _read_captions(asked.captions), columns.pop("turn", "")

        def add_caption(row: Row, texts: dict[str, str]) -> None:
            if captions and (number := row.text(turn)):
                session = texts["session"]
                texts["edited_prompt"] = _caption(captions, session, f"{session}-output{number}.png")

        return table_edits(table, columns | {"session": columns["group"]}, add_caption, [turn] if turn else [])

    def plan(self, knobs: EvaluationConfig, names: Sequence[str], cases: Sequence[EditCase]) -> list[Part]:
        """Plans every editor on every case, and on the sessions as chains."""
        usual, numbers, parts = usual_setting(knobs), list(range(len(cases))), list[Part]()
        for name in (*names, "copy"):
            parts += slices(name, "edit", usual, numbers)
            parts += session_slices(name, usual, cases)
        return parts


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
