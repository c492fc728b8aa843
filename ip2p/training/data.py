"""Where the pairs come from: a folder of parquet files or a dataset on the hub. No torch here.

The latent cache reads rows in order, once; a training without one reads them by number.
"""

from __future__ import annotations

import glob
import itertools
import logging
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p.config import PipelineConfig, TrainingConfig, fingerprint
from ip2p.config.fields import RESULT_FREE, WEIGHTS_FREE, names_with
from ip2p.console import first_line
from ip2p.store import sha256_of, visible_parquet

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

HASHED_BYTES = 1 << 30
"""Files are told apart by content up to so many bytes, beyond by size and time."""
READ_ROWS = 64
OTHER_SPLITS = ("test", "validation", "val-", "eval")


class Rows(Protocol):
    """Rows in a fixed order."""

    fingerprint: str

    def __len__(self) -> int: ...

    def prompts(self) -> list[str | None]:
        """The instructions of all rows, without reading an image."""
        ...

    def read(self) -> Iterator[RawPair]:
        """All rows."""
        ...


def open_rows(data: str, config: TrainingConfig) -> Rows:
    """The training rows of a folder, a parquet file or a hub id. ValueError where there are none or a column lacks."""
    files = find_files(data)
    if files:
        return ParquetRows(files, config)
    dataset = _load_dataset(data, config, **_as_dataset(data))
    return (StreamedRows if config.streaming else DatasetRows)(dataset, config, data)


def find_files(data: str) -> list[Path]:
    """The parquet files of the training split under a path or pattern; empty where `datasets` must look for `data`."""
    if not data:
        raise ValueError("no data to train on. Give a folder of parquet files or a hub id.")
    path = Path(data).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = visible_parquet(_dataset_in(path))
        is_of_images = not files and any(path.glob("**/metadata.*"))
        return [] if is_of_images else _of_training(files, _dataset_in(path))
    if "://" in data:
        return []
    if glob.has_magic(data):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if name.endswith(".parquet"))
        if not found:
            raise ValueError(f"no parquet file is called {data}. Give a pattern such as data/train-*.parquet.")
        return found
    if path.is_absolute() or data.startswith((".", "~")) or data.count("/") != 1:
        raise ValueError(f"{data} does not exist. Give a folder of parquet files or a hub id (owner/name).")
    return []


def find_test_files(data: str) -> list[Path]:
    """The parquet files of a folder's other splits; none of anything that is no folder."""
    path = Path(data).expanduser()
    files = visible_parquet(_dataset_in(path)) if path.is_dir() else []
    return [file for file in files if file.name.startswith(OTHER_SPLITS)]


def _dataset_in(folder: Path) -> Path:
    """The dataset of a run; any other folder itself."""
    return folder / "dataset" if (folder / "dataset").is_dir() else folder


def _of_training(files: list[Path], folder: Path) -> list[Path]:
    train = [path for path in files if path.name.startswith("train")]
    found = train or [path for path in files if not path.name.startswith(OTHER_SPLITS)]
    if not found:
        raise ValueError(f"{folder} holds no parquet file of a training split. Give one with data/train-*.parquet.")
    return found


def check_columns(config: TrainingConfig, columns: list[str], where: str) -> None:
    """ValueError that names what there is where a column of the config is not among it."""
    for knob in ("original_image_column", "edited_image_column", "edit_prompt_column"):
        name = getattr(config, knob)
        if name not in columns:
            present = ", ".join(columns) or "none"
            raise ValueError(f"{where} has no column {name!r}; its columns are: {present}. Set training.{knob}.")


def fingerprint_files(paths: list[Path]) -> str:
    """Tells sets of files apart: by content, or by size and time where they are large."""
    sizes = [path.stat().st_size for path in paths]
    if sum(sizes) <= HASHED_BYTES:
        return fingerprint([path.name for path in paths], [sha256_of(path) for path in paths])
    return fingerprint([(path.name, size, path.stat().st_mtime_ns) for path, size in zip(paths, sizes, strict=True)])


def model_fingerprint(config: TrainingConfig) -> str:
    """Tells base models apart: by their files where they are local, else by name and revision."""
    folder = Path(config.pretrained_model_name_or_path).expanduser()
    if not folder.is_dir():
        return fingerprint(config.pretrained_model_name_or_path, config.revision, config.variant)
    return fingerprint_files([path for path in sorted(folder.rglob("*")) if path.is_file() and _decides(path)])


def _decides(path: Path) -> bool:
    return path.suffix in (".safetensors", ".json", ".txt") and not path.name.startswith(".")


def training_fingerprint(config: PipelineConfig, data: str) -> str:
    """Hash of what decides the trained weights: settings, the base model's content and the data's."""
    return fingerprint(resume_fingerprint(config, data), config.training.max_train_steps)


def resume_fingerprint(config: PipelineConfig, data: str) -> str:
    """The same for a checkpoint: under a constant learning rate a training may be made longer."""
    training = config.training
    free = names_with(TrainingConfig, RESULT_FREE, WEIGHTS_FREE)
    if training.lr_scheduler.startswith("constant"):
        free |= {"max_train_steps"}
    knobs = {field.name: getattr(training, field.name) for field in fields(TrainingConfig) if field.name not in free}
    files = find_files(data)
    return fingerprint(knobs, model_fingerprint(training), fingerprint_files(files) if files else data)


class ParquetRows:
    """Rows of local parquet files, read by batches straight from the files."""

    def __init__(self, files: list[Path], config: TrainingConfig) -> None:
        self.files = files
        self.columns = _columns_of(config)
        num_rows = 0
        for file in files:
            opened = _open_parquet(file)
            check_columns(config, opened.schema_arrow.names, str(file))
            num_rows += opened.metadata.num_rows
        if not num_rows:
            raise ValueError(f"{files[0].parent} has no rows. Give a dataset with at least one pair.")
        self.num_rows = min(num_rows, config.max_train_samples or num_rows)
        self.fingerprint = fingerprint(fingerprint_files(files), self.columns, self.num_rows)

    def __len__(self) -> int:
        return self.num_rows

    def prompts(self) -> list[str | None]:
        """The instructions of all rows."""
        read = (_as_prompt(row[self.columns[2]]) for row in self._rows(self.columns[2:], 4096))
        return list(itertools.islice(read, self.num_rows))

    def read(self) -> Iterator[RawPair]:
        """All rows; memory holds one batch."""
        rows = itertools.islice(self._rows(self.columns, READ_ROWS), self.num_rows)
        return (_as_pair(row, self.columns) for row in rows)

    def _rows(self, columns: list[str], batch_size: int) -> Iterator[dict[str, Any]]:
        for file in self.files:
            for batch in _open_parquet(file).iter_batches(batch_size=batch_size, columns=list(dict.fromkeys(columns))):
                yield from batch.to_pylist()


class DatasetRows:
    """Rows of anything that `datasets` reads, by number or in order."""

    def __init__(self, dataset: Dataset, config: TrainingConfig, name: str) -> None:
        self.columns = _columns_of(config)
        check_columns(config, dataset.column_names, name)
        num_rows = min(len(dataset), config.max_train_samples or len(dataset))
        needed = dataset.select_columns(list(dict.fromkeys(self.columns))).select(range(num_rows))
        self.dataset = _without_decoding(needed)
        self.fingerprint = fingerprint(name, self.dataset._fingerprint)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> RawPair:
        return _as_pair(self.dataset[number], self.columns)

    def prompts(self) -> list[str | None]:
        """The instructions of all rows."""
        return [_as_prompt(value) for value in self.dataset[self.columns[2]]]

    def read(self) -> Iterator[RawPair]:
        """All rows."""
        return (_as_pair(row, self.columns) for row in self.dataset)


class StreamedRows:
    """Rows of a hub dataset, read one after another; nothing is downloaded before."""

    def __init__(self, dataset: IterableDataset, config: TrainingConfig, name: str) -> None:
        self.columns = _columns_of(config)
        columns = dataset.column_names or list(next(iter(dataset)))
        check_columns(config, columns, name)
        self.dataset = _without_decoding(dataset.select_columns(list(dict.fromkeys(self.columns))))
        self.most = config.max_train_samples
        self._prompts: list[str | None] | None = None
        self.fingerprint = fingerprint(name, columns, self.most, "streaming")

    def __len__(self) -> int:
        return len(self.prompts())

    def prompts(self) -> list[str | None]:
        """The instructions of all rows, in a pass of their own."""
        if self._prompts is None:
            rows = itertools.islice(self.dataset.select_columns(self.columns[2:]), self.most)
            self._prompts = [_as_prompt(row[self.columns[2]]) for row in rows]
        return self._prompts

    def read(self) -> Iterator[RawPair]:
        """All rows."""
        return (_as_pair(row, self.columns) for row in itertools.islice(self.dataset, self.most))


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as parquet: {error}. Remove it or write it again.") from error


def open_table(data: str, config: TrainingConfig) -> DatasetRows:
    """The training rows, each to be had by its number; parquet files are laid out for that on disk, once."""
    files = find_files(data)
    options = {"path": "parquet", "data_files": [str(path) for path in files]} if files else _as_dataset(data)
    return DatasetRows(_load_dataset(data, config, **options), config, data)


def _as_dataset(data: str) -> dict[str, Any]:
    """What `load_dataset` takes for a folder of images, a pattern of parquet files or a hub id."""
    folder = Path(data).expanduser()
    if folder.is_dir():
        return {"path": "imagefolder", "data_dir": str(folder)}
    if data.endswith(".parquet"):
        return {"path": "parquet", "data_files": data}
    return {"path": data}


def _load_dataset(data: str, config: TrainingConfig, **options: Any) -> Any:
    from datasets import load_dataset

    where = {"name": getattr(config, "dataset_config_name", None), "cache_dir": getattr(config, "cache_dir", None)}
    try:
        return load_dataset(**options, **where, split="train", streaming=config.streaming)
    except Exception as error:  # the hub client raises many kinds
        first = first_line(error)
        raise ValueError(f"could not load {data}: {first} Give a folder of parquet files or a hub id.") from error


def _without_decoding(dataset: Any) -> Any:
    from datasets import Image as ImageFeature

    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, ImageFeature):
            dataset = dataset.cast_column(name, ImageFeature(decode=False))
    return dataset


def _columns_of(config: TrainingConfig) -> list[str]:
    return [config.original_image_column, config.edited_image_column, config.edit_prompt_column]


def _as_pair(row: dict[str, Any], columns: list[str]) -> RawPair:
    original, edited, prompt = (row[name] for name in columns)
    return RawPair(original, edited, _as_prompt(prompt))


def _as_prompt(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


@dataclass(frozen=True, slots=True)
class RawPair:
    """A row as it is stored: two undecoded images and the instruction."""

    original: Any
    edited: Any
    edit_prompt: str | None


@dataclass(frozen=True, slots=True)
class DecodedPair:
    """Two images under one geometry."""

    pixels: NDArray[np.uint8]
    """(2, resolution, resolution, 3): original and edited."""
    size: tuple[int, int]
    """(height, width) before."""
    top_left: tuple[int, int]
    """Where the crop begins in the resized image."""

    def mirrored(self) -> DecodedPair:
        """From right to left; the crop is counted from the mirrored image's left."""
        resolution = self.pixels.shape[1]
        rest = _resized(self.size, resolution)[1] - resolution
        top, left = self.top_left
        return DecodedPair(self.pixels[..., ::-1, :].copy(), self.size, (top, rest - left))

    def time_ids(self) -> tuple[int, ...]:
        """What a Stable Diffusion XL is told: original size, crop and target size."""
        resolution = self.pixels.shape[1]
        return (*self.size, *self.top_left, resolution, resolution)


def decode_pair(pair: RawPair, resolution: int, crop: tuple[float, float] = (0.5, 0.5)) -> DecodedPair:
    """Resizes the short side and crops square, at shares `crop` of the rest from top and left.

    ValueError where the row is of no use.
    """
    if pair.edit_prompt is None:
        raise ValueError("no instruction")
    original, edited = _open_image(pair.original), _open_image(pair.edited)
    if abs(original.width * edited.height - edited.width * original.height) > 0.02 * original.width * edited.height:
        raise ValueError(f"two shapes, {original.size} and {edited.size}")
    size = original.height, original.width
    top, left = (
        round((side - resolution) * share) for side, share in zip(_resized(size, resolution), crop, strict=True)
    )
    pixels = np.stack([_fit(image, resolution, crop) for image in (original, edited)])
    return DecodedPair(pixels, size, (top, left))


def _resized(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """(height, width) once the short side is `resolution`."""
    height, width = (round(side * resolution / min(size)) for side in size)
    return height, width


def is_square(cell: Any) -> bool:
    """By the header alone; what cannot be read counts as square, since it is dropped later."""
    content = cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else str(content)) as image:
            return image.width == image.height
    except Exception:  # codecs raise many kinds
        return True


def _open_image(cell: Any) -> Image.Image:
    content = cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell
    if not content:
        raise ValueError("no image")
    try:
        image = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # codecs raise many kinds, and a broken row must not end the run
        raise ValueError(f"image does not decode: {error}") from error


def _fit(image: Image.Image, resolution: int, crop: tuple[float, float]) -> NDArray[np.uint8]:
    if image.size != (resolution, resolution):
        centering = crop[1], crop[0]
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS, centering=centering)
    return np.asarray(image, dtype=np.uint8)
