"""Reads pairs of other people's datasets under our names, and of folders that the original software wrote.

Nothing is decoded here; images are file contents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ip2p.sources.columns import FURTHER_PICTURES, NEEDED, SIDES, check_columns, map_columns
from ip2p.sources.files import parse_json
from ip2p.sources.location import locate
from ip2p.sources.row import Row
from ip2p.sources.rows import open_table
from ip2p.sources.tables import ParquetTable

TEXTS = ("original_prompt", "edit_prompt", "edited_prompt", "edit_type", "group")
ORIGINAL_NAMES = {"original_prompt": ("input", "caption"), "edit_prompt": ("edit",), "edited_prompt": ("output",)}
"""Keys of the original's `prompt.json`: its code writes `caption`, the released data has `input`."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A pair of another dataset."""

    original_image: bytes | None
    edited_image: bytes | None
    original_prompt: str = ""
    edit_prompt: str = ""
    edited_prompt: str = ""
    edit_type: str = ""
    group: str = ""
    """Identifies the original picture, if the source does: rows of one picture belong in one split."""
    spec: Mapping[str, float] = field(default_factory=dict)
    """Seed and settings, if the source states them."""
    further: Mapping[str, bytes] = field(default_factory=dict)
    """Pictures that the source has beside the two, by their columns among `FURTHER_PICTURES`."""


def read_source(
    source: str, columns: Mapping[str, str] | None = None, *, split: str = "train", revision: str | None = None
) -> Iterator[SourceRow]:
    """Reads all pairs of a split; guesses the columns if none are given.

    ValueError with the way out if the source has an unknown form or lacks a column.
    """
    location = locate(source)
    if location.kind == "path" and _is_original_layout(location.path):
        return _read_original_layout(location.path)
    table = open_table(location, split=split, revision=revision)
    mapping = map_columns(table.names, columns, where=source)
    if isinstance(table, ParquetTable):
        for file, names in table.names_by_file.items():
            check_columns({name: mapping[name] for name in NEEDED}, names, where=str(file))
    return (_to_pair(row, mapping) for row in table.read(list(mapping.values())))


def _to_pair(row: Row, mapping: Mapping[str, str]) -> SourceRow:
    texts: dict[str, Any] = {name: row.text(mapping[name]) for name in TEXTS if name in mapping}
    texts["edit_prompt"] = (row.wording(mapping["edit_prompt"]) or "").strip()
    further = {name: row.content(mapping[name]) for name in FURTHER_PICTURES if name in mapping}
    if not further.get("reference_image_2"):
        further["reference_image_2"] = row.content(mapping["original_image"], 1)
    original, edited = (row.content(mapping[side]) for side in SIDES)
    return SourceRow(original, edited, **texts, further={name: file for name, file in further.items() if file})


def _is_original_layout(folder: Path) -> bool:
    """Returns whether the original's image stage wrote a folder: one with a prompt.json per triplet."""
    return (folder / "seeds.json").is_file() or next(folder.glob("*/prompt.json"), None) is not None


def _read_original_layout(folder: Path) -> Iterator[SourceRow]:
    """Reads the pairs on disk, whether or not `seeds.json` names them: the released one names missing folders."""
    for prompt in sorted(folder.glob("*/prompt.json")):
        try:
            values = parse_json(prompt.read_text(encoding="utf-8"))
        except ValueError:
            values = {}
        texts: dict[str, Any] = {name: _first_text(values, keys) for name, keys in ORIGINAL_NAMES.items()}
        settings = _read_settings(prompt.with_name("metadata.jsonl"))
        for original in sorted(path for path in prompt.parent.glob("*_0.*") if not path.name.startswith(".")):
            seed = original.stem.removesuffix("_0")
            edited = original.with_name(f"{seed}_1{original.suffix}")
            spec = {"seed": int(seed)} if seed.isdigit() else {}
            yield SourceRow(
                original.read_bytes(),
                edited.read_bytes() if edited.is_file() else None,
                **texts,
                group=prompt.parent.name,
                spec=spec | settings.get(seed, {}),
            )


def _first_text(values: object, keys: Sequence[str]) -> str:
    texts = (values.get(key) for key in keys) if isinstance(values, dict) else ()
    return next((text for text in texts if isinstance(text, str)), "")


def _read_settings(path: Path) -> dict[str, dict[str, float]]:
    """Reads settings by seed; a killed run may leave a broken line, and a seed's last line counts."""
    settings: dict[str, dict[str, float]] = {}
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            row = parse_json(line.decode())
            settings[str(row["seed"])] = {"p2p": float(row["p2p_threshold"]), "guidance_scale": float(row["cfg_scale"])}
        except (ValueError, KeyError, TypeError):
            continue
    return settings
