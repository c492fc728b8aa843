"""Fills a latent cache, or says why pairs are rather encoded at every step.

Each process encodes the parts that are missing and its own, and reads the rows of those alone. A part is written whole:
what is there when a build is stopped or killed is used by the next.
"""

from __future__ import annotations

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
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ip2p.config import TrainingConfig
from ip2p.models.architecture import base_architecture
from ip2p.models.latents import pictures_at_once
from ip2p.models.texts import TextEncoders, join_texts
from ip2p.store import read_json_or_empty, write_json
from ip2p.training.buckets import framing_of
from ip2p.training.cache import FILLED, LatentCache, cache_key, counts_of, storage_of
from ip2p.training.data import RawPair, SourceRows
from ip2p.training.decoding import DecodedPair, Framing, Size, decode_pair
from ip2p.training.encoding import encode_views, load_encoder
from ip2p.training.text_cache import TEXTS_PER_PART, CachedTexts, StoredTexts, TextsOfStep
from ip2p.training.trainer import pairs_per_step

logger = logging.getLogger(__name__)

ROWS_PER_PART = 1024
TEXTS_PER_BATCH = 64
PAIRS_PER_BATCH = 64
LOGGED_ERRORS = 5
GIB = 2**30
TEXTS = "texts.json"
"""Notes whether a cache keeps its texts; one without this file does."""
T = TypeVar("T")


def cache_pays(config: TrainingConfig, num_pairs: int, num_processes: int) -> bool:
    """Decides whether to encode all pairs before the first step, and says why.

    That takes as many encodings as a training without a cache needs for as many epochs as there are views of a pair.
    """
    if config.streaming or config.aspect_ratio_buckets:
        return True  # which cannot do without
    epochs = float(config.num_train_epochs)
    if config.max_train_steps is not None:
        epochs = config.max_train_steps * pairs_per_step(config, num_processes) / num_pairs
    views = 2 if config.random_flip else 1
    least = views if config.cache_epochs is None else config.cache_epochs
    pays = epochs > least
    logger.info(
        "%s: %.3g epochs of %d pairs, and a cache pays after %g. --cache_epochs changes this",
        "encoding all pairs before the first step" if pays else "encoding pairs at every step",
        epochs,
        num_pairs,
        least,
    )
    return pays


def load_cache(
    root: Path,
    rows: SourceRows,
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
        for partial in folder.glob(".*.partial"):  # of a process that was killed
            partial.unlink()
    accelerator.wait_for_everyone()
    prompts: list[str] = []
    if not (folder / FILLED).exists():
        prompts = unique_prompts(rows.prompts())
        with torch.no_grad():
            if _keeps_texts(folder, prompts, config, accelerator):
                _write_texts(folder, prompts, config, accelerator)
            _write_rows(folder, rows, prompts, config, accelerator)
        accelerator.wait_for_everyone()
        clear_device_cache(garbage_collection=True)  # the accelerator's own would forget what it has prepared
        _log_result(folder, len(rows))
    else:
        logger.info("using the latent cache in %s", folder)
    seconds = time.monotonic() - started
    if accelerator.is_main_process:
        write_json(folder / FILLED, {"rows": len(rows)})
    texts: CachedTexts = StoredTexts(folder)
    if not read_json_or_empty(folder / TEXTS).get("kept", True):
        encoders = base_architecture(config).load_text_encoders(config, accelerator.device)
        texts = TextsOfStep(prompts or unique_prompts(rows.prompts()), encoders, accelerator)
    return LatentCache(folder, round(seconds, 2), texts)


def _log_result(folder: Path, num_rows: int) -> None:
    dropped = counts_of(folder, "dropped")
    logger.info("encoded %d of %d pairs", num_rows - dropped.total(), num_rows)
    if dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        logger.warning("dropped %d rows: %s", dropped.total(), reasons)
    if lacking := counts_of(folder, "without_mask").total():
        logger.warning("%d pairs have no usable mask; all of their positions count alike", lacking)


def unique_prompts(prompts: list[str | None]) -> list[str]:
    """Returns the empty instruction first, then each in the order of its first row."""
    return list(dict.fromkeys(["", *(prompt for prompt in prompts if prompt is not None)]))


def _mine(path: Path, number: int, accelerator: Accelerator) -> bool:
    return number % accelerator.num_processes == accelerator.process_index and not path.exists()


def _text_paths(folder: Path, num_prompts: int) -> list[Path]:
    return [folder / f"text-{number:05d}.safetensors" for number in range(-(-num_prompts // TEXTS_PER_PART))]


def _keeps_texts(folder: Path, prompts: Sequence[str], config: TrainingConfig, accelerator: Accelerator) -> bool:
    """Decides, once for all processes and for later trainings, whether the texts' states are worth their disk space."""
    note = folder / TEXTS
    is_small = len(prompts) <= TEXTS_PER_PART or _text_paths(folder, 1)[0].exists()
    if not is_small and not note.exists() and accelerator.is_main_process:
        encoders = base_architecture(config).load_text_encoders(config, accelerator.device)
        texts = encoders.encode([""])
        numbers = texts.hidden.numel() + (0 if texts.pooled is None else texts.pooled.numel())
        each = numbers * storage_of(config).itemsize
        size, free = len(prompts) * each / GIB, shutil.disk_usage(folder).free / GIB
        kept = size <= config.max_text_cache_gib and size < free
        logger.info(
            "the states of %d instructions take %.1f GiB, %.2f MiB each; they are %s (at most %g GiB, %.0f GiB free)",
            len(prompts),
            size,
            each / 2**20,
            "kept in the cache" if kept else "encoded at every step, with the encoders in memory",
            config.max_text_cache_gib,
            free,
        )
        write_json(note, {"kept": kept})
    accelerator.wait_for_everyone()
    return bool(read_json_or_empty(note).get("kept", True))


def _write_texts(folder: Path, prompts: Sequence[str], config: TrainingConfig, accelerator: Accelerator) -> None:
    paths = _text_paths(folder, len(prompts))
    encoders: TextEncoders | None = None
    for number, block in enumerate(_batched(prompts, TEXTS_PER_PART)):
        if not _mine(paths[number], number, accelerator):
            continue
        encoders = encoders or base_architecture(config).load_text_encoders(config, accelerator.device)
        first, rest = (block[:1], block[1:]) if number == 0 else ((), block)
        batches = [*filter(None, [first]), *_batched(rest, TEXTS_PER_BATCH)]
        texts = join_texts([encoders.encode(batch) for batch in batches])
        pooled = {} if texts.pooled is None else {"pooled": texts.pooled}
        _save(paths[number], {"text": texts.hidden} | pooled, config, {"dropped": Counter()})


def _write_rows(
    folder: Path, rows: SourceRows, prompts: Sequence[str], config: TrainingConfig, accelerator: Accelerator
) -> None:
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    vae: AutoencoderKL | None = None
    framing = framing_of(config)
    starts = range(0, len(rows), ROWS_PER_PART)
    paths = [folder / f"rows-{number:05d}.safetensors" for number in range(len(starts))]
    mine = [number for number, path in enumerate(paths) if _mine(path, number, accelerator)]
    total = sum(min(ROWS_PER_PART, len(rows) - starts[number]) for number in mine)
    bar = tqdm(total=total, desc="encode pairs", unit="pair", disable=None if accelerator.is_main_process else True)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, block in zip(mine, rows.blocks(mine, ROWS_PER_PART), strict=True):
            vae = vae or load_encoder(config, accelerator.device)
            tensors, counts = _encode_block(vae, block, numbers, config, framing, pool, starts[number], bar)
            _save(paths[number], tensors, config, counts)


def _batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    iterator = iter(items)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


Counts = dict[str, Counter[str]]
"""How many rows were dropped, and how many have no usable mask, by reason."""


def _encode_block(
    vae: AutoencoderKL,
    block: Iterable[RawPair],
    numbers: dict[str, int],
    config: TrainingConfig,
    framing: Framing,
    pool: ThreadPoolExecutor,
    first: int,
    bar: tqdm[NoReturn],
) -> tuple[dict[str, Tensor], Counts]:
    """Encodes the rows that decode, those of each size together; counts the others by reason."""
    side = max(config.bucket_resolutions, default=config.resolution)
    batch_size = min(PAIRS_PER_BATCH, pictures_at_once(vae, side**2))
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
        bar.update(len(batch))
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
        name: (value.to(storage_of(config)) if value.is_floating_point() else value).cpu().contiguous()
        for name, value in tensors.items()
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    save_file(stored, temporary, metadata={name: json.dumps(each) for name, each in counts.items()})
    os.replace(temporary, path)
