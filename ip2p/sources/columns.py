"""How datasets from elsewhere are read: a folder of parquet files, a glob or a hub id, with columns renamed to ours."""

from __future__ import annotations

import glob
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from ip2p.console import first_line

if TYPE_CHECKING:
    from datasets import Dataset

NEEDED = ("original_image", "edit_prompt", "edited_image")
OPTIONAL = ("original_prompt", "edited_prompt")

KNOWN_SCHEMAS: dict[str, dict[str, str]] = {
    "timbrooks/instructpix2pix-clip-filtered": {name: name for name in (*NEEDED, *OPTIONAL)},
    "fusing/instructpix2pix-1000-samples": {
        "original_image": "input_image",
        "edit_prompt": "edit_prompt",
        "edited_image": "edited_image",
    },
    "osunlp/MagicBrush": {
        "original_image": "source_img",
        "edit_prompt": "instruction",
        "edited_image": "target_img",
        "group": "img_id",
    },
    "BleachNick/UltraEdit": {
        "original_image": "source_image",
        "edit_prompt": "edit_prompt",
        "edited_image": "edited_image",
        "original_prompt": "source_caption",
        "edited_prompt": "target_caption",
    },
    "TIGER-Lab/OmniEdit-Filtered-1.2M": {
        "original_image": "src_img",
        "edit_prompt": "edited_prompt_list",
        "edited_image": "edited_img",
        "edit_type": "task",
        "group": "omni_edit_id",
    },
    "UCSC-VLAA/HQ-Edit": {
        "original_image": "input_image",
        "edit_prompt": "edit",
        "edited_image": "output_image",
        "original_prompt": "input",
        "edited_prompt": "output",
    },
    "instruction-tuning-sd/cartoonization": {
        "original_image": "original_image",
        "edit_prompt": "edit_prompt",
        "edited_image": "cartoonized_image",
    },
}
"""Our column names to those of a dataset on the hub."""


def guess_columns(names: Collection[str]) -> dict[str, str]:
    """Our column names to those at hand, by the known schema that fits. ValueError where none does."""
    for mapping in KNOWN_SCHEMAS.values():
        if all(mapping[column] in names for column in NEEDED):
            return {ours: theirs for ours, theirs in mapping.items() if theirs in names}
    raise ValueError(
        f"no known schema fits the columns {', '.join(sorted(names)) or '(none)'}. "
        f"Name the columns that hold {', '.join(NEEDED)}."
    )


def check_columns(columns: Mapping[str, str], names: Collection[str], *, where: str) -> None:
    """Raises a ValueError that names the missing columns and those there are."""
    missing = [f"{theirs} (for {ours})" for ours, theirs in columns.items() if theirs not in names]
    if missing:
        raise ValueError(f"{where} has no column {', '.join(missing)}; it has {', '.join(sorted(names)) or '(none)'}.")


def parquet_files(source: str | Path, split: str = "train") -> list[Path]:
    """The parquet files of a split in a local folder, or those of a glob or file; none where `source` is neither."""
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
        return [file for file in files if file.name.startswith(split)] or [f for f in files if not _names_split(f)]
    return sorted(Path(name) for name in glob.glob(str(path), recursive=True) if name.endswith(".parquet"))


def _names_split(path: Path) -> bool:
    return path.name.startswith(("train", "test", "validation", "val", "dev"))


def read_columns(source: str | Path, split: str = "train") -> list[str]:
    """Column names of a local folder, glob or file. ValueError where there is no parquet file."""
    return list(pq.read_schema(_checked_files(source, split)[0]).names)


def _checked_files(source: str | Path, split: str) -> list[Path]:
    files = parquet_files(source, split)
    if not files:
        raise ValueError(f"{source} holds no parquet file of the split {split}. Give a folder, a glob or a hub id.")
    return files


def open_dataset(
    source: str | Path,
    columns: Mapping[str, str] | None = None,
    *,
    split: str = "train",
    revision: str | None = None,
) -> Dataset:
    """The split with our column names and Image features; guesses the schema where `columns` is not given."""
    return with_our_names(_load(source, split, revision), columns, where=str(source))


def with_our_names(dataset: Dataset, columns: Mapping[str, str] | None, *, where: str) -> Dataset:
    """A dataset with our column names and Image features; guesses the schema where `columns` is not given."""
    from datasets import Image

    mapping = dict(columns) if columns is not None else guess_columns(dataset.column_names)
    check_columns(mapping, dataset.column_names, where=where)
    dataset = _rename(dataset, mapping)
    for name in ("original_image", "edited_image"):
        if name in mapping and not isinstance(dataset.features[name], Image):
            dataset = dataset.cast_column(name, Image())
    return dataset


def _rename(dataset: Dataset, mapping: Mapping[str, str]) -> Dataset:
    """Our names for the columns of a mapping; a column that bears one of our names by chance is dropped."""
    taken = [name for name in mapping if name in dataset.column_names and mapping[name] != name]
    dataset = dataset.remove_columns([name for name in taken if name not in mapping.values()])
    return dataset.rename_columns({theirs: ours for ours, theirs in mapping.items() if theirs != ours})


def _load(source: str | Path, split: str, revision: str | None) -> Dataset:
    from datasets import load_dataset

    if not _is_local(source):
        return _load_from_hub(str(source), split, revision)
    files: Sequence[str] = [str(file) for file in _checked_files(source, split)]
    return load_dataset("parquet", data_files={split: list(files)}, split=split)


def _load_from_hub(source: str, split: str, revision: str | None) -> Dataset:
    from datasets import load_dataset

    options: dict[str, Any] = {"split": split, "revision": revision}
    try:
        return load_dataset(source, **options)
    except (OSError, ValueError) as error:
        first = first_line(error)
        raise ValueError(f"could not load {source}: {first}. Give a parquet folder, a glob or a hub id.") from error


def _is_local(source: str | Path) -> bool:
    text = str(source)
    pattern = text.endswith(".parquet") or any(mark in text for mark in "*?[")
    return pattern or text.startswith((".", "/", "~")) or Path(text).exists()
