"""Examines what a run reads: model folders, whether they are whole, and pairs, whether they decode."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from ip2p.config import TrainingConfig
from ip2p.console import first_line, one_line
from ip2p.doctor.findings import Finding, look, size_of
from ip2p.images import read_size
from ip2p.sources.columns import guess_columns
from ip2p.sources.content import weight_files
from ip2p.sources.files import read_footer
from ip2p.sources.hub import stream_rows
from ip2p.sources.location import Location, data_files, dataset_in, locate, split_of
from ip2p.sources.rows import open_table
from ip2p.sources.tables import ParquetTable
from ip2p.store import read_json_or_empty
from ip2p.training.data import RawPair, Rows, TableRows, check_columns, find_files, open_rows
from ip2p.training.decoding import decode_pair
from ip2p.training.joining import with_columns

if TYPE_CHECKING:
    from ip2p.models.architecture import Architecture

PIPELINE, CLIP, NETWORK = "model_index.json", "open_clip_config.json", "config.json"
"""Files that make a folder a diffusers pipeline, a model of open_clip, or one network."""
SAMPLED_FILES, SAMPLED_ROWS = 4, 16
"""Files that the sample is taken from, and rows from the beginning of each."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a network on disk."""

    num_weights: int
    num_bytes: int


def is_model(folder: Path) -> bool:
    """Returns whether a folder holds a model; a run's config.json is not a network's."""
    is_network = {"model_type", "architectures", "_class_name"} & read_json_or_empty(folder / NETWORK).keys()
    return (folder / PIPELINE).is_file() or (folder / CLIP).is_file() or bool(is_network)


def cached_model(name: str, revision: str | None = None) -> Path | None:
    """Returns the folder of a hub model in the hub's cache, if its index or config is there."""
    for marker in (PIPELINE, CLIP, NETWORK):
        try:
            path = try_to_load_from_cache(name, marker, revision=revision)
        except HFValidationError:
            return None
        if isinstance(path, str):
            return Path(path).parent
    return None


def _folder_of(name: str, revision: str | None) -> Path | None:
    path = Path(name).expanduser()
    return path if path.is_dir() else cached_model(name, revision)


def examine_model(name: str, *, variant: str | None = None, revision: str | None = None) -> Iterator[Finding]:
    """Yields findings about a model folder or a hub id: its parts, their files, sizes and headers."""
    folder = _folder_of(name, revision)
    if folder is None:
        if constants.HF_HUB_OFFLINE:
            way_out = "Unset HF_HUB_OFFLINE, or give a model folder."
            yield Finding(
                "problem", "files", f"{name} is not on this machine, and the hub must not be asked. {way_out}"
            )
        else:
            way_out = f"To download it now: hf download {name}"
            yield Finding("warning", "files", f"{name} is not on this machine; a run downloads it. {way_out}")
        return
    from ip2p.models.loading import weights_in  # which imports torch

    try:
        variant = weights_in(folder, variant)["variant"]
    except ValueError as error:
        yield Finding("problem", "weights", str(error))
        return
    if not (folder / PIPELINE).is_file():
        yield look("weights", partial(_describe_weights, folder, variant))
        return
    yield look("pipeline", lambda: _architecture_of(folder).title)
    for part in parts_of(folder):
        if not (folder / part).is_dir():
            way_out = "Copy or download the model again."
            yield Finding("problem", part, f"{PIPELINE} lists {part}, which is not in {folder}. {way_out}")
        elif (folder / part / NETWORK).is_file():
            yield look(part, partial(_describe_weights, folder / part, variant))


def parts_of(folder: Path) -> list[str]:
    """Lists the parts of a pipeline, by its index; those that are null are left out."""
    entries = read_json_or_empty(folder / PIPELINE).items()
    return [name for name, value in entries if isinstance(value, list) and any(value)]


def _describe_weights(folder: Path, variant: str | None) -> str:
    weights = read_weights(folder, variant)
    number = f"{weights.num_weights / 1e6:,.1f} million weights" if weights.num_weights else "pickled weights"
    return f"{number} in {size_of(weights.num_bytes)}"


def native_side(name: str, revision: str | None = None) -> int:
    """Returns the pixels on a side of a pipeline's own images, by its autoencoder; 512 if that is not known."""
    folder = _folder_of(name, revision)
    return int(read_json_or_empty(folder / "vae" / NETWORK).get("sample_size", 512)) if folder else 512


def denoiser_weights(name: str, revision: str | None = None) -> int:
    """Returns the number of weights of a pipeline's denoiser; 0 if they cannot be read on this machine."""
    folder = _folder_of(name, revision)
    if folder is None:
        return 0
    from ip2p.models.loading import weights_in  # which imports torch

    try:
        part = folder / _architecture_of(folder).part
        return read_weights(part, weights_in(folder, None)["variant"]).num_weights
    except (ValueError, OSError):
        return 0


def _architecture_of(folder: Path) -> Architecture:
    from ip2p.models.architecture import architecture_named, class_name  # which imports diffusers

    index = read_json_or_empty(folder / PIPELINE)
    if not index.get("_class_name"):
        raise ValueError(f"{folder / PIPELINE} names no pipeline. Copy or download the model again.")
    return architecture_named(class_name(index), what=str(folder))


def read_weights(folder: Path, variant: str | None) -> Weights:
    """Reads the headers of the safetensors that a network is loaded from, or the sizes of its pickled weights.

    ValueError if a file is missing, empty or broken, with the way out.
    """
    again = "Copy or download the model again."
    for index in folder.glob(f"*.safetensors.index.{f'{variant}.' if variant else ''}json"):
        listed = read_json_or_empty(index).get("weight_map")
        if not isinstance(listed, dict):
            raise ValueError(f"{index} lists no file. {again}")
        if lacking := sorted(name for name in set(listed.values()) if not (folder / name).is_file()):
            raise ValueError(f"{folder} lacks {lacking[0]}, which {index.name} lists. {again}")
    present = weight_files(folder)
    chosen = variant if any(file.variant == variant for file in present) else None
    files = [file for file in present if file.variant == chosen]
    if not files:
        raise ValueError(f"{folder} has no weights. {again}")
    paths = [file.path for file in files if file.format == "safetensors"]
    if not paths:
        return Weights(0, sum(file.path.stat().st_size for file in files))
    num_weights = 0
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as opened:
                names = opened.keys()
                num_weights += sum(math.prod(opened.get_slice(name).get_shape()) for name in names)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is broken: {first_line(error)}. {again}") from error
    return Weights(num_weights, sum(path.stat().st_size for path in paths))


def examine_data(data: str, config: TrainingConfig | None = None, *, is_further: bool = False) -> Iterator[Finding]:
    """Yields findings about pairs: splits, columns, and a sample that is decoded as the trainer decodes it.

    Without a config, the columns are those of the known schema that fits. Data that `is_further`, of
    `training.more_data`, have the config's columns or those of such a schema.
    """
    try:
        location = locate(data)
    except ValueError as error:
        yield Finding("problem", "rows", str(error))
        return
    if files := data_files(location):
        yield (splits := look("splits", partial(_describe_splits, files, location)))
        if splits.status != "ok":
            return
    try:
        own = with_columns(data, config) if config and is_further else config
        columns = own or _guess_columns(location)
        pairs = sample_pairs(data, columns)
    except Exception as error:  # a client of an object store raises many kinds
        yield Finding("problem", "rows", one_line(error))
        return
    names = (columns.original_image_column, columns.edit_prompt_column, columns.edited_image_column)
    yield Finding("ok", "columns", ", ".join(names))
    yield from _examine_sample(pairs, columns.resolution if config else None)


def _describe_splits(files: Sequence[Path], location: Location) -> str:
    root = dataset_in(location.path) if location.path.is_dir() else location.path.parent
    by_split: defaultdict[str, list[int]] = defaultdict(list)
    for file in files:
        split = split_of(file, root) if location.kind == "path" else None
        by_split[split or "unnamed, for training"].append(read_footer(file)[1])
    return "; ".join(f"{split}: {sum(rows):,} rows in {len(rows)} files" for split, rows in by_split.items())


def _guess_columns(location: Location) -> TrainingConfig:
    """Returns a config with the columns of the known schema that fits. ValueError if none does."""
    if location.kind == "hub":
        names = list(next(stream_rows(location, limit=1, split="train"), {}))
    else:
        names = open_table(location, any_split=True).names
    columns = guess_columns(names)
    return TrainingConfig(
        original_image_column=columns["original_image"],
        edit_prompt_column=columns["edit_prompt"],
        edited_image_column=columns["edited_image"],
    )


def sample_pairs(data: str, config: TrainingConfig) -> list[RawPair]:
    """Reads the first rows of some files of the training split. ValueError as in the trainer."""
    tables: list[Rows] = []
    if files := find_files(data):
        table = ParquetTable(files)
        for file, names in table.names_by_file.items():
            check_columns(config, names, str(file))
        filled = [file for file, num_rows in zip(files, table.num_rows, strict=True) if num_rows]
        step = max(1, len(filled) // SAMPLED_FILES)
        tables += [TableRows(ParquetTable([file]), config, str(file), None) for file in filled[::step][:SAMPLED_FILES]]
    else:
        tables.append(open_rows(data, replace(config, streaming=True)))
    if pairs := [pair for rows in tables for pair in islice(rows.read(), SAMPLED_ROWS)]:
        return pairs
    raise ValueError(f"{data} has no rows. Give a dataset with at least one pair.")


def _examine_sample(pairs: Sequence[RawPair], resolution: int | None) -> Iterator[Finding]:
    """Decodes pairs; compares their sizes with each other and, if there is one, with the training's resolution."""
    reasons, sizes = Counter[str](), []
    for pair in pairs:
        try:
            decode_pair(pair, resolution or 64)
        except ValueError as error:
            reasons[str(error).partition(":")[0]] += 1
        else:
            sizes.append((read_size(pair.original or b""), read_size(pair.edited or b"")))
    text = f"{len(sizes)} of {len(pairs)} pairs can be used"
    if reasons:
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        text += f"; left out: {why}. Training and import skip such rows: correct them if they should count."
    yield Finding("problem" if not sizes else "warning" if reasons else "ok", "sample", text)
    if not sizes:
        return
    shapes = [width / height for (width, height), _ in sizes]
    least, most = min(sizes)[0], max(sizes)[0]
    text = (
        f"{least[0]} x {least[1]} to {most[0]} x {most[1]} pixels, aspect ratio {min(shapes):.2f} to {max(shapes):.2f}"
    )
    if num := sum(first != second for first, second in sizes):
        text += f"; {num} pairs have two sizes and are cropped to one shape"
    yield Finding("ok", "sizes", text)
    if resolution and (num := sum(min(first) < resolution for first, _ in sizes)):
        way_out = "Lower training.resolution if they are not to be enlarged."
        yield Finding(
            "warning", "resolution", f"{num} pairs are smaller than the {resolution} pixels of training. {way_out}"
        )
