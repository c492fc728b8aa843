"""Keeps the frozen encoders' outputs for every pair on disk, computed once.

Each row has the mean and deviation of the edited image's posterior (so that each step samples anew), the mode of the
original image's, *not* scaled (as the original's weights and diffusers' pipeline expect), its sizes and crop and, for a
loss weighted by regions, where it changes; with `random_flip` also those of its mirror image. Each instruction has its
encoded text; number 0 is no instruction. Parts are safetensors, memory-mapped, each written atomically: a killed build
resumes at its last part. A part has the rows of each size of the crop side by side. The key is a hash of model, data,
sizes, regions and mirroring.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ip2p.config import TrainingConfig, fingerprint
from ip2p.models.texts import Texts
from ip2p.training.buckets import buckets_of
from ip2p.training.data import Rows
from ip2p.training.draws import Batch, SampleStream, StepDraws
from ip2p.training.encoding import CHANGED, ROW_COLUMNS
from ip2p.training.fingerprints import model_fingerprint
from ip2p.training.regions import regions_of
from ip2p.training.text_cache import CachedTexts, JoinedTexts, StoredTexts

FILLED = "finished.json"
"""Is written last, when all parts are there; in a store it is the index of them."""
LAYOUT = 2
"""Is raised when the same pairs are stored differently."""


class Parts(Protocol):
    """Parts by number, each a tensor by column."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> dict[str, Tensor]: ...

    def __iter__(self) -> Iterator[dict[str, Tensor]]: ...


class LatentCache:
    """The parts of a finished cache, mapped into memory. Rows of one size follow each other within a part.

    Its texts are those that it keeps, unless others are given.
    """

    def __init__(self, folder: Path, seconds: float, texts: CachedTexts | None = None) -> None:
        files = [_by_size(load_file(path)) for path in sorted(folder.glob("rows-*.safetensors"))]
        self.rows: Parts = [part for file in files for part in file if len(part["prompt"])]
        self.part_sizes = [sum(len(part["prompt"]) for part in file) for file in files]
        """The pairs in each file."""
        self.texts = texts or StoredTexts(folder)
        self.starts = np.cumsum([0, *(len(part["prompt"]) for part in self.rows)])
        self.source_numbers: NDArray[np.int64] = np.zeros(len(self), dtype=np.int64)
        """The source of the data that each pair comes from."""
        self.dropped = counts_of(folder, "dropped")
        self.seconds = seconds
        self.check_rows()

    def check_rows(self) -> None:
        """Raises ValueError if there is no pair."""
        if not len(self):
            raise ValueError(f"no row of the data can be used: {dict(self.dropped)}. The log names the rows' errors.")

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def on_host(self) -> bool:
        """Whether `load` needs the host alone."""
        return self.texts.on_host

    @property
    def none(self) -> Texts:
        """The encoded text that stands for no instruction."""
        return self.texts.take([0]).map(lambda values: values.float())

    @property
    def row_numbers(self) -> Sequence[int]:
        """The row of the data that each pair comes from."""
        return torch.cat([part["row"] for part in self.rows]).tolist()

    @property
    def latent_shape(self) -> torch.Size:
        """(C, H, W); of the first pair if they have several."""
        return self.rows[0]["mean"].shape[2:]

    @property
    def shapes(self) -> tuple[list[torch.Size], NDArray[np.int64]]:
        """Returns the shapes of the latents, and the number among them of each pair's."""
        of_parts = [part["mean"].shape[2:] for part in self.rows]
        shapes = sorted(set(of_parts))
        return shapes, np.repeat([shapes.index(shape) for shape in of_parts], np.diff(self.starts))

    def load(self, stream: SampleStream, micro_step: int, draws: StepDraws) -> Batch:
        """Returns the batch of a micro-step, given its draws."""
        return self.take(stream.samples(micro_step), draws.mirrored.tolist())

    def take(self, samples: list[int], mirrored: list[bool]) -> Batch:
        """Returns the samples of these numbers, which are of one size.

        `mirrored` ones are mirrored if the cache was built for it.
        """
        parts = np.searchsorted(self.starts, samples, side="right") - 1
        offsets = np.asarray(samples) - self.starts[parts]
        places = [(self.rows[part], int(offset)) for part, offset in zip(parts, offsets, strict=True)]
        prompts = [int(part["prompt"][place]) for part, place in places]

        def column(name: str) -> Tensor:
            both = zip(places, mirrored, strict=True)
            return torch.stack([part[name][at, -1 if mirror else 0] for (part, at), mirror in both])

        mean, deviation, condition, sizes = map(column, ROW_COLUMNS)
        changed = column(CHANGED) if CHANGED in places[0][0] else None
        return Batch(mean, deviation, condition, self.texts.take(prompts), sizes, changed)


def join_caches(caches: Sequence[LatentCache], nums_rows: Sequence[int]) -> LatentCache:
    """Returns the caches of sources with so many rows as one, whose row numbers count on from source to source."""
    joined = copy.copy(caches[0])
    joined.dropped, all_rows = Counter(), list[dict[str, Tensor]]()
    joined.texts = JoinedTexts([cache.texts for cache in caches])
    first_row = first_prompt = 0
    for cache, num_rows in zip(caches, nums_rows, strict=True):
        for part in cache.rows:
            row = {"row": part["row"] + first_row} if "row" in part else {}
            all_rows.append(part | row | {"prompt": part["prompt"] + first_prompt})
        joined.dropped += cache.dropped
        first_row, first_prompt = first_row + num_rows, first_prompt + len(cache.texts)
    joined.rows, joined.part_sizes = all_rows, [size for cache in caches for size in cache.part_sizes]
    joined.starts = np.cumsum([0, *(len(part["prompt"]) for part in joined.rows)])
    joined.source_numbers = np.repeat(np.arange(len(caches)), [len(cache) for cache in caches])
    joined.seconds = round(sum(cache.seconds for cache in caches), 2)
    return joined


def _by_size(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Splits a part whose columns are named `HEIGHTxWIDTH/column` by size, in order of the sizes."""
    sizes: dict[tuple[int, ...], dict[str, Tensor]] = {}
    for name, values in tensors.items():
        size, _, column = name.rpartition("/")
        sizes.setdefault(tuple(map(int, size.split("x"))) if size else (), {})[column] = values
    return [sizes[size] for size in sorted(sizes)]


def cache_key(rows: Rows, config: TrainingConfig, later: Sequence[str] = ()) -> str:
    """Hashes what decides the cache's content; `later` has the contents of what is known by name, if they changed."""
    views: tuple[object, ...] = (config.resolution, config.random_flip, str(storage_of(config)), LAYOUT)
    vae = config.pretrained_vae_model_name_or_path, config.vae_precision
    if config.balance_column:
        views = *views, "row numbers"  # which caches of earlier versions lack
    if config.aspect_ratio_buckets:
        views = *views, "buckets", sorted(buckets_of(config).by_resolution.items())
    if regions := regions_of(config):
        views = *views, "regions", asdict(regions), config.mask_column
    return fingerprint(rows.fingerprint, model_fingerprint(config), *vae, *views, *later)


def storage_of(config: TrainingConfig) -> torch.dtype:
    return torch.float32 if config.mixed_precision in ("no", None) else torch.float16


def counts_of(folder: Path, name: str) -> Counter[str]:
    """Adds up what the parts of a cache counted; those of earlier versions count less."""
    total: Counter[str] = Counter()
    for path in sorted(folder.glob("rows-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            total.update(json.loads(file.metadata().get(name, "{}")))
    return total
