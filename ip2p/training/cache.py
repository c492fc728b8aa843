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
import itertools
import json
import logging
import os
import re
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ip2p.config import TrainingConfig, fingerprint
from ip2p.models.architecture import base_architecture
from ip2p.models.texts import Texts, join_texts
from ip2p.store import write_json
from ip2p.training.buckets import buckets_of, framing_of
from ip2p.training.data import RawPair, Rows, model_fingerprint
from ip2p.training.decoding import DecodedPair, Framing, Size, decode_pair
from ip2p.training.draws import Batch, SampleStream, StepDraws
from ip2p.training.encoding import CHANGED, ROW_COLUMNS, encode_views, load_encoder
from ip2p.training.regions import regions_of

logger = logging.getLogger(__name__)

ROWS_PER_PART = 1024
LAYOUT = 2
"""Is raised when the same pairs are stored differently."""
LOGGED_ERRORS = 5
T = TypeVar("T")


class LatentCache:
    """The parts of a finished cache, mapped into memory. Rows of one size follow each other within a part."""

    on_host = True

    def __init__(self, folder: Path, seconds: float) -> None:
        loaded = (part for path in sorted(folder.glob("rows-*.safetensors")) for part in _by_size(load_file(path)))
        self.rows = [part for part in loaded if len(part["prompt"])]
        self.texts = [load_file(path) for path in sorted(folder.glob("text-*.safetensors"))]
        self.starts = np.cumsum([0, *(len(part["prompt"]) for part in self.rows)])
        self.source_numbers: NDArray[np.int64] = np.zeros(len(self), dtype=np.int64)
        """The source of the data that each pair comes from."""
        self.dropped = _dropped(folder)
        self.seconds = seconds
        if not len(self):
            raise ValueError(f"no row of the data can be used: {dict(self.dropped)}. The log names the rows' errors.")

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def none(self) -> Texts:
        """The encoded text that stands for no instruction."""
        return self._texts([0]).map(lambda values: values.float())

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
        changed = column(CHANGED) if CHANGED in self.rows[0] else None
        return Batch(mean, deviation, condition, self._texts(prompts), sizes, changed)

    def _texts(self, prompts: list[int]) -> Texts:
        rows = [(self.texts[prompt // ROWS_PER_PART], prompt % ROWS_PER_PART) for prompt in prompts]
        hidden = torch.stack([part["text"][row] for part, row in rows])
        pooled = torch.stack([part["pooled"][row] for part, row in rows]) if "pooled" in self.texts[0] else None
        return Texts(hidden, pooled)


def join_caches(caches: Sequence[LatentCache], nums_rows: Sequence[int]) -> LatentCache:
    """Returns the caches of sources with so many rows as one, whose row numbers count on from source to source."""
    joined = copy.copy(caches[0])
    joined.rows, joined.texts, joined.dropped = [], [], Counter()
    first_row = 0
    for cache, num_rows in zip(caches, nums_rows, strict=True):
        first_prompt = len(joined.texts) * ROWS_PER_PART
        for part in cache.rows:
            row = {"row": part["row"] + first_row} if "row" in part else {}
            joined.rows.append(part | row | {"prompt": part["prompt"] + first_prompt})
        joined.texts += cache.texts
        joined.dropped += cache.dropped
        first_row += num_rows
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
    views: tuple[object, ...] = (config.resolution, config.random_flip, str(_storage(config)), LAYOUT)
    vae = config.pretrained_vae_model_name_or_path, config.vae_precision
    if config.balance_column:
        views = *views, "row numbers"  # which caches of earlier versions lack
    if config.aspect_ratio_buckets:
        views = *views, "buckets", sorted(buckets_of(config).by_resolution.items())
    if regions := regions_of(config):
        views = *views, "regions", asdict(regions), config.mask_column
    return fingerprint(rows.fingerprint, model_fingerprint(config), *vae, *views, *later)


def _storage(config: TrainingConfig) -> torch.dtype:
    return torch.float32 if config.mixed_precision in ("no", None) else torch.float16


def load_cache(
    root: Path,
    rows: Rows,
    config: TrainingConfig,
    accelerator: Accelerator,
    later: Sequence[str] = (),
    beside: Collection[str] = (),
) -> LatentCache:
    """Loads the cache of these rows, by `cache_key`; missing parts are computed, shared out over the processes.

    Caches under other keys than those `beside` it are removed.
    """
    folder = root / cache_key(rows, config, later)
    started = time.monotonic()
    if accelerator.is_main_process:
        for other in root.glob("*"):
            if re.fullmatch(r"[0-9a-f]{16}", other.name) and other != folder and other.name not in beside:
                logger.info("removing the latent cache of other data or another model: %s", other)
                shutil.rmtree(other)
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    if not (folder / "finished.json").exists():
        with torch.no_grad():
            _write_texts(folder, rows, config, accelerator)
            _write_rows(folder, rows, config, accelerator)
        accelerator.wait_for_everyone()
        clear_device_cache(garbage_collection=True)  # the accelerator's own would forget what it has prepared
        _log_result(folder, len(rows))
    else:
        logger.info("using the latent cache in %s", folder)
    seconds = time.monotonic() - started
    if accelerator.is_main_process:
        write_json(folder / "finished.json", {"rows": len(rows)})
    return LatentCache(folder, round(seconds, 2))


def _log_result(folder: Path, num_rows: int) -> None:
    dropped = _dropped(folder)
    logger.info("encoded %d of %d pairs", num_rows - dropped.total(), num_rows)
    if dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        logger.warning("dropped %d rows: %s", dropped.total(), reasons)
    if lacking := _counts(folder, "without_mask").total():
        logger.warning("%d pairs have no usable mask; all of their positions count alike", lacking)


def unique_prompts(prompts: list[str | None]) -> list[str]:
    """Returns the empty instruction first, then each in the order of its first row."""
    return list(dict.fromkeys(["", *(prompt for prompt in prompts if prompt is not None)]))


def _mine(path: Path, number: int, accelerator: Accelerator) -> bool:
    return number % accelerator.num_processes == accelerator.process_index and not path.exists()


def _write_texts(folder: Path, rows: Rows, config: TrainingConfig, accelerator: Accelerator) -> None:
    prompts = unique_prompts(rows.prompts())
    blocks = list(_batched(prompts, ROWS_PER_PART))
    paths = [folder / f"text-{number:05d}.safetensors" for number in range(len(blocks))]
    todo = [number for number, path in enumerate(paths) if _mine(path, number, accelerator)]
    if not todo:
        return
    encoders = base_architecture(config).load_text_encoders(config, accelerator.device)
    for number in todo:
        first, rest = ([blocks[0][:1]], blocks[0][1:]) if number == 0 else ([], blocks[number])
        texts = join_texts([encoders.encode(batch) for batch in (*first, *_batched(rest, 64))])
        if number == todo[0]:
            _log_size(texts, len(prompts), _storage(config))
        pooled = {} if texts.pooled is None else {"pooled": texts.pooled}
        _save(paths[number], {"text": texts.hidden} | pooled, config, {"dropped": Counter()})


def _log_size(texts: Texts, num_prompts: int, stored: torch.dtype) -> None:
    """Says what the texts take on disk: a T5's states are large, since all its tokens are stored."""
    numbers = texts.hidden[0].numel() + (0 if texts.pooled is None else texts.pooled[0].numel())
    each = numbers * stored.itemsize / 2**20
    logger.info("encoding %d instructions, %.2f MiB each, %.1f GiB", num_prompts, each, num_prompts * each / 1024)


def _write_rows(folder: Path, rows: Rows, config: TrainingConfig, accelerator: Accelerator) -> None:
    numbers = {prompt: number for number, prompt in enumerate(unique_prompts(rows.prompts()))}
    vae: AutoencoderKL | None = None
    framing = framing_of(config)
    bar = tqdm(total=len(rows), desc="encode pairs", unit="pair", disable=None if accelerator.is_main_process else True)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, block in enumerate(_batched(rows.read(), ROWS_PER_PART)):
            path = folder / f"rows-{number:05d}.safetensors"
            if _mine(path, number, accelerator):
                vae = vae or load_encoder(config, accelerator.device)
                tensors, counts = _encode_block(vae, block, numbers, config, framing, pool, number * ROWS_PER_PART)
                _save(path, tensors, config, counts)
            bar.update(len(block))


def _batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    iterator = iter(items)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


Counts = dict[str, Counter[str]]
"""How many rows were dropped, and how many have no usable mask, by reason."""


def _encode_block(
    vae: AutoencoderKL,
    block: tuple[RawPair, ...],
    numbers: dict[str, int],
    config: TrainingConfig,
    framing: Framing,
    pool: ThreadPoolExecutor,
    first: int,
) -> tuple[dict[str, Tensor], Counts]:
    """Encodes the rows that decode, those of each size together; counts the others by reason."""
    side = max(config.bucket_resolutions, default=config.resolution)
    batch_size = max(1, min(64, 64 * 256**2 // side**2 // 2))
    encoded: defaultdict[Size, list[dict[str, Tensor]]] = defaultdict(list)
    counts: Counts = {"dropped": Counter(), "without_mask": Counter()}
    for batch in _batched(block, batch_size):
        usable: defaultdict[Size, list[tuple[DecodedPair, int, int]]] = defaultdict(list)
        for pair, decoded in zip(batch, pool.map(lambda pair: _decoded(pair, framing), batch), strict=True):
            if isinstance(decoded, ValueError):
                counts["dropped"][str(decoded).partition(":")[0].partition(",")[0]] += 1
                if counts["dropped"].total() <= LOGGED_ERRORS:
                    logger.warning("dropped row %d: %s", first, decoded)
            else:
                counts["without_mask"]["no usable mask"] += decoded.lacks_mask
                usable[decoded.crop].append((decoded, numbers[str(pair.edit_prompt)], first))
            first += 1
        for size, members in usable.items():
            pairs, prompts, rows = zip(*members, strict=True)
            places = {"prompt": torch.tensor(prompts), "row": torch.tensor(rows)}
            encoded[size].append(encode_views(vae, pairs, config) | places)
    tensors: dict[str, Tensor] = {}
    for (height, width), parts in encoded.items():
        prefix = f"{height}x{width}/" if config.aspect_ratio_buckets else ""
        tensors |= {f"{prefix}{name}": torch.cat([part[name] for part in parts]) for name in parts[0]}
    return tensors or {"prompt": torch.zeros(0, dtype=torch.long)}, counts


def _decoded(pair: RawPair, framing: Framing) -> DecodedPair | ValueError:
    try:
        return decode_pair(pair, framing)
    except ValueError as error:
        return error


def _save(path: Path, tensors: dict[str, Tensor], config: TrainingConfig, counts: Counts) -> None:
    stored = {
        name: (value.to(_storage(config)) if value.is_floating_point() else value).cpu().contiguous()
        for name, value in tensors.items()
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    save_file(stored, temporary, metadata={name: json.dumps(each) for name, each in counts.items()})
    os.replace(temporary, path)


def _dropped(folder: Path) -> Counter[str]:
    return _counts(folder, "dropped")


def _counts(folder: Path, name: str) -> Counter[str]:
    """Adds up what the parts of a cache counted; those of earlier versions count less."""
    total: Counter[str] = Counter()
    for path in sorted(folder.glob("rows-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            total.update(json.loads(file.metadata().get(name, "{}")))
    return total
