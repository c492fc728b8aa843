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
import threading
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
from ip2p.store import write_json
from ip2p.training.buckets import framing_of
from ip2p.training.cache import FILLED, LatentCache, cache_key, counts_of, storage_of
from ip2p.training.cache_store import TEXTS, CacheStore, Index, is_filled, open_cache_store, part_name, text_note
from ip2p.training.data import RawPair, SourceRows
from ip2p.training.decoding import DecodedPair, Framing, Size, decode_pair
from ip2p.training.encoding import encode_views, load_encoder
from ip2p.training.fetching import FetchedParts
from ip2p.training.streamed import StreamedCache
from ip2p.training.text_cache import TEXTS_PER_PART, CachedTexts, StoredTexts, TextsOfStep
from ip2p.training.trainer import pairs_per_step

logger = logging.getLogger(__name__)

ROWS_PER_PART = 1024
TEXTS_PER_BATCH = 64
PAIRS_PER_BATCH = 64
LOGGED_ERRORS = 5
GIB = 2**30
T = TypeVar("T")


def cache_pays(config: TrainingConfig, num_pairs: int, num_processes: int) -> bool:
    """Decides whether to encode all pairs before the first step, and says why.

    That takes as many encodings as a training without a cache needs for as many epochs as there are views of a pair.
    """
    if config.streaming or config.aspect_ratio_buckets or config.cache_window or config.latent_cache:
        return True  # which cannot do without, or ask for it
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
    stop_requested: threading.Event | None = None,
) -> LatentCache:
    """Loads the cache of these rows, by `cache_key`; missing parts are computed, shared out over the processes.

    Caches under other keys than those `beside` it are removed. `stop_requested` asks one that is streamed to stop.
    """
    folder = root / cache_key(rows, config, later)
    store = open_cache_store(config, folder, _num_parts(len(rows)) if config.cache_window else 0)
    started = time.monotonic()
    _make_ready(folder, beside, accelerator, store)
    prompts: list[str] = []
    if not is_filled(folder, store):
        prompts = unique_prompts(rows.prompts())
        with torch.no_grad():
            if _keeps_texts(folder, prompts, config, accelerator, store):
                _write_texts(folder, prompts, config, accelerator, store)
            _write_rows(folder, rows, prompts, config, accelerator, store)
        accelerator.wait_for_everyone()
        clear_device_cache(garbage_collection=True)  # the accelerator's own would forget what it has prepared
        _log_result(folder, len(rows), store.finish(len(rows), accelerator) if store else None)
    else:
        logger.info("using the latent cache in %s", store.remote.place if store else folder)
    index = store.pull(config, accelerator) if store else None
    seconds = time.monotonic() - started
    if accelerator.is_main_process and not (index and config.cache_window):
        write_json(folder / FILLED, {"rows": len(rows)})
    texts: CachedTexts = StoredTexts(folder)
    if not text_note(folder, store).get("kept", True):
        encoders = base_architecture(config).load_text_encoders(config, accelerator.device)
        texts = TextsOfStep(prompts or unique_prompts(rows.prompts()), encoders, accelerator)
    if store and index and config.cache_window:
        place = accelerator.local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        return StreamedCache(FetchedParts(store, index, stop_requested, *place), index, round(seconds, 2), texts)
    return LatentCache(folder, round(seconds, 2), texts)


def _make_ready(folder: Path, beside: Collection[str], accelerator: Accelerator, store: CacheStore | None) -> None:
    """Makes a cache's folder and removes what others and killed processes left; on each node if there is a store."""
    if accelerator.is_main_process:
        for other in folder.parent.glob("*"):
            if re.fullmatch(r"[0-9a-f]{16}", other.name) and other != folder and other.name not in beside:
                logger.info("removing the latent cache of other data or another model: %s", other)
                shutil.rmtree(other)
    if accelerator.is_main_process or (store and accelerator.is_local_main_process):
        folder.mkdir(parents=True, exist_ok=True)
        for left in (*folder.glob(".*.partial"), *folder.glob(".*.lock")):  # of a process that was killed
            left.unlink(missing_ok=True)
        if store:  # which knows what is filled; the folder may come to lack parts
            (folder / FILLED).unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def _log_result(folder: Path, num_rows: int, index: Index | None) -> None:
    dropped = index.dropped if index else counts_of(folder, "dropped")
    logger.info("encoded %d of %d pairs", num_rows - dropped.total(), num_rows)
    if dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        logger.warning("dropped %d rows: %s", dropped.total(), reasons)
    if lacking := (index.without_mask if index else counts_of(folder, "without_mask")).total():
        logger.warning("%d pairs have no usable mask; all of their positions count alike", lacking)


def unique_prompts(prompts: list[str | None]) -> list[str]:
    """Returns the empty instruction first, then each in the order of its first row."""
    return list(dict.fromkeys(["", *(prompt for prompt in prompts if prompt is not None)]))


def _missing(paths: Sequence[Path], accelerator: Accelerator, store: CacheStore | None) -> list[int]:
    """Returns the numbers of this process's parts that are to be made; those that only it has are put into a store."""

    def is_there(path: Path) -> bool:
        return path.exists() if store is None else store.holds(path) or store.keep_found(path)

    own = range(accelerator.process_index, len(paths), accelerator.num_processes)
    return [number for number in own if not is_there(paths[number])]


def _num_parts(num_rows: int) -> int:
    return -(-num_rows // ROWS_PER_PART)


def _text_paths(folder: Path, num_prompts: int) -> list[Path]:
    return [folder / f"text-{number:05d}.safetensors" for number in range(-(-num_prompts // TEXTS_PER_PART))]


def _keeps_texts(
    folder: Path,
    prompts: Sequence[str],
    config: TrainingConfig,
    accelerator: Accelerator,
    store: CacheStore | None = None,
) -> bool:
    """Decides, once for all processes and for later trainings, whether the texts' states are worth their disk space."""
    first = _text_paths(folder, 1)[0]
    is_small = len(prompts) <= TEXTS_PER_PART or first.exists() or (store is not None and store.holds(first))
    if not is_small and accelerator.is_main_process and not text_note(folder, store):
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
        write_json(folder / TEXTS, {"kept": kept})
        if store:
            store.remote.write_json(TEXTS, {"kept": kept})
    accelerator.wait_for_everyone()
    return bool(text_note(folder, store).get("kept", True))


def _write_texts(
    folder: Path,
    prompts: Sequence[str],
    config: TrainingConfig,
    accelerator: Accelerator,
    store: CacheStore | None = None,
) -> None:
    paths = _text_paths(folder, len(prompts))
    encoders: TextEncoders | None = None
    for number in _missing(paths, accelerator, store):
        block = tuple(prompts[number * TEXTS_PER_PART : (number + 1) * TEXTS_PER_PART])
        encoders = encoders or base_architecture(config).load_text_encoders(config, accelerator.device)
        first, rest = (block[:1], block[1:]) if number == 0 else ((), block)
        batches = [*filter(None, [first]), *_batched(rest, TEXTS_PER_BATCH)]
        texts = join_texts([encoders.encode(batch) for batch in batches])
        pooled = {} if texts.pooled is None else {"pooled": texts.pooled}
        _save(paths[number], {"text": texts.hidden} | pooled, config, {"dropped": Counter()}, store)


def _write_rows(
    folder: Path,
    rows: SourceRows,
    prompts: Sequence[str],
    config: TrainingConfig,
    accelerator: Accelerator,
    store: CacheStore | None = None,
) -> None:
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    vae: AutoencoderKL | None = None
    framing = framing_of(config)
    starts = range(0, len(rows), ROWS_PER_PART)
    paths = [folder / part_name(number) for number in range(len(starts))]
    mine = _missing(paths, accelerator, store)
    total = sum(min(ROWS_PER_PART, len(rows) - starts[number]) for number in mine)
    bar = tqdm(total=total, desc="encode pairs", unit="pair", disable=None if accelerator.is_main_process else True)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, block in zip(mine, rows.blocks(mine, ROWS_PER_PART), strict=True):
            vae = vae or load_encoder(config, accelerator.device)
            tensors, counts = _encode_block(vae, block, numbers, config, framing, pool, starts[number], bar)
            _save(paths[number], tensors, config, counts, store)


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


def _save(
    path: Path, tensors: dict[str, Tensor], config: TrainingConfig, counts: Counts, store: CacheStore | None
) -> None:
    stored = {
        name: (value.to(storage_of(config)) if value.is_floating_point() else value).cpu().contiguous()
        for name, value in tensors.items()
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    save_file(stored, temporary, metadata={name: json.dumps(each) for name, each in counts.items()})
    os.replace(temporary, path)
    if store:
        store.keep(path)
