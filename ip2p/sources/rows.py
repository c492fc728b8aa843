"""Rows of other people's datasets: the original's folders, image folders, parquet and the hub, under our names.

A row is read as it lies there; nothing is decoded here. Images are file contents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ip2p.sources.columns import open_dataset, with_our_names

if TYPE_CHECKING:
    from datasets import Dataset

TEXTS = ("original_prompt", "edit_prompt", "edited_prompt")
SIDES = ("original_image", "edited_image")
ORIGINAL_NAMES = {"original_prompt": ("input", "caption"), "edit_prompt": ("edit",), "edited_prompt": ("output",)}
"""Keys of the original's `prompt.json`: its code writes `caption`, the released data has `input`."""
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A pair as another dataset has it."""

    original_image: bytes | None
    edited_image: bytes | None
    original_prompt: str = ""
    edit_prompt: str = ""
    edited_prompt: str = ""
    edit_type: str = ""
    group: str = ""
    """What tells the source's pictures apart, where it says so: rows of one picture belong in one split."""
    spec: Mapping[str, float] = field(default_factory=dict)
    """Seed and settings, where the source has them."""


def read_source(
    source: str, columns: Mapping[str, str] | None = None, *, split: str = "train", revision: str | None = None
) -> Iterator[SourceRow]:
    """All rows. ValueError where the source is of no known form, with the way out."""
    folder = Path(source).expanduser()
    if folder.is_dir() and is_original_layout(folder):
        return read_original_layout(folder)
    if folder.is_dir() and any(next(folder.rglob(name), None) for name in METADATA_NAMES):
        from datasets import load_dataset

        loaded = load_dataset("imagefolder", data_dir=str(folder), split=split)
        return _read_table(with_our_names(loaded, columns, where=source))
    return _read_table(open_dataset(source, columns, split=split, revision=revision))


def is_original_layout(folder: Path) -> bool:
    """Whether a folder is what the original's image stage wrote: a folder with a prompt.json per triplet."""
    return (folder / "seeds.json").is_file() or next(folder.glob("*/prompt.json"), None) is not None


def read_original_layout(folder: Path) -> Iterator[SourceRow]:
    """The pairs on disk, whether or not `seeds.json` names them: the released one names folders that are not there."""
    for prompt in sorted(folder.glob("*/prompt.json")):
        try:
            texts = json.loads(prompt.read_text())
        except ValueError:
            texts = {}
        found = {name: _first(texts, keys) for name, keys in ORIGINAL_NAMES.items()}
        settings = _read_metadata(prompt.with_name("metadata.jsonl"))
        for original in sorted(prompt.parent.glob("*_0.*")):
            seed = original.stem.removesuffix("_0")
            edited = original.with_name(f"{seed}_1{original.suffix}")
            spec = {"seed": int(seed)} if seed.isdigit() else {}
            yield SourceRow(
                original.read_bytes(),
                edited.read_bytes() if edited.is_file() else None,
                **found,
                group=prompt.parent.name,
                spec=spec | settings.get(seed, {}),
            )


def _first(texts: Any, keys: Sequence[str]) -> str:
    values = (texts.get(key) for key in keys) if isinstance(texts, dict) else ()
    return next((value for value in values if isinstance(value, str)), "")


def _read_metadata(path: Path) -> dict[str, dict[str, float]]:
    """By seed; a line of a run that was killed may be broken, and later lines of a seed replace earlier ones."""
    found: dict[str, dict[str, float]] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            found[str(row["seed"])] = {"p2p": float(row["p2p_threshold"]), "guidance_scale": float(row["cfg_scale"])}
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _read_table(dataset: Dataset) -> Iterator[SourceRow]:
    from datasets import Image

    for side in SIDES:
        dataset = dataset.cast_column(side, Image(decode=False))
    wanted = {*TEXTS, *SIDES, "edit_type", "group"}
    dataset = dataset.select_columns([name for name in dataset.column_names if name in wanted])
    for row in dataset:
        original, edited, instruction, kind, group = (
            as_text(row.get(name)) for name in ("original_prompt", "edited_prompt", "edit_prompt", "edit_type", "group")
        )
        images = content_of(row["original_image"]), content_of(row["edited_image"])
        yield SourceRow(*images, original, instruction, edited, kind, group)


def as_text(value: Any) -> str:
    """A column may hold several wordings; the first is taken."""
    if isinstance(value, list):
        value = value[0] if value else ""
    return "" if value is None else str(value).strip()


def content_of(cell: Any) -> bytes | None:
    """The file behind a cell of an image column that is not decoded."""
    if not isinstance(cell, dict):
        return None
    if cell.get("bytes"):
        return bytes(cell["bytes"])
    path = cell.get("path")
    return Path(path).read_bytes() if path and Path(path).is_file() else None
