"""One shard of the prompt stage: a slice of the captions in, all its generations with their reasons out.

A shard depends on its own captions, on how they are written about and on the length that the renderer's text encoder
takes; captions that are added at the end of the file therefore leave finished shards alone.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ip2p import store
from ip2p.config import PipelineConfig, PromptsConfig, fingerprint, to_dict
from ip2p.prompts.captions import Entry, ReadyLine, read_entries
from ip2p.prompts.parse import Reason, judge_triplet, name_edit_type, parse_answer
from ip2p.records import EditTriplet

logger = logging.getLogger(__name__)

TEXT_COLUMNS = ("original_prompt", "edit_prompt", "edited_prompt", "edit_type", "source")
SCHEMA = pa.schema([(name, pa.string()) for name in ("triplet_id", *TEXT_COLUMNS, "caption", "generation", "reason")])
ACTS_THROUGH_THE_CAPTIONS = ("captions", "num_captions", "shard_size")


@dataclasses.dataclass(frozen=True, slots=True)
class Generation:
    """What was written about a caption: the raw text, and the triplet where it has one."""

    caption: str
    text: str
    triplet: EditTriplet | None
    reason: Reason


def num_shards(config: PipelineConfig) -> int:
    """Shards that the captions make. ValueError where there are no captions."""
    return math.ceil(len(read_entries(config.prompts)) / config.prompts.shard_size)


def write_shard(config: PipelineConfig, number: int) -> store.Sidecar:
    """Writes `triplets/part-<number>.parquet` unless it is done; returns its sidecar."""
    entries = _entries_of(config.prompts, number)
    path = store.RunFolder(config.out).shard("triplets", number)
    wanted = _fingerprint(config, entries)
    done = store.finished(path, wanted)
    if done is not None:
        logger.info("%s is done: %d triplets", path.name, done.counts.get("kept", 0))
        return done
    started = time.monotonic()
    fits = _length_check(config)
    generations = judge(write_about(config.prompts, entries, number, fits=fits), fits=fits)
    seconds = time.monotonic() - started
    counts = count(generations, len(entries))
    _log(path, counts, seconds)
    return store.write_shard(path, triplets_table(generations), fingerprint=wanted, seconds=seconds, counts=counts)


def read_triplets(path: Path) -> list[EditTriplet]:
    """The kept triplets of a shard, in order."""
    table = pq.read_table(path, columns=[*TEXT_COLUMNS, "reason"])
    rows = table.to_pylist()
    return [EditTriplet(**{name: row[name] for name in TEXT_COLUMNS}) for row in rows if not row["reason"]]


def _entries_of(config: PromptsConfig, number: int) -> tuple[Entry, ...]:
    start = number * config.shard_size
    entries = read_entries(config)[start : start + config.shard_size]
    if number < 0 or not entries:
        raise ValueError(f"triplets shard {number} has no captions. Ask for shards 0 to num_shards(config) - 1.")
    return entries


def _fingerprint(config: PipelineConfig, entries: Sequence[Entry]) -> str:
    prompts = {name: value for name, value in to_dict(config.prompts).items() if name not in _RESULT_FREE}
    texts = [entry if isinstance(entry, str) else [entry.text, _source_of(entry)] for entry in entries]
    return fingerprint("triplets", prompts, texts, config.rendering.model, config.rendering.revision)


_RESULT_FREE = {*ACTS_THROUGH_THE_CAPTIONS, "batch_size", "device"}


def _source_of(line: ReadyLine) -> str:
    return line.triplet.source if line.triplet else ""


def write_about(
    config: PromptsConfig, entries: Sequence[Entry], number: int, *, fits: Callable[[str], bool]
) -> list[Generation]:
    """Unjudged generations: a ready triplet's line, else the model's answer; none to a caption that is too long."""
    ready = [_from_line(entry, config) for entry in entries if isinstance(entry, ReadyLine)]
    captions = [entry for entry in entries if isinstance(entry, str)]
    too_long = [Generation(caption, "", None, "too_long") for caption in captions if not fits(caption)]
    asked = [caption for caption in captions if fits(caption)]
    return ready + too_long + (_ask_model(config, asked, number) if asked else [])


def _from_line(line: ReadyLine, config: PromptsConfig) -> Generation:
    if line.triplet is None:
        return Generation("", line.text, None, "unparsable")
    named = line.triplet.edit_type or name_edit_type(line.triplet.edit_prompt, config.edit_type_rules)
    triplet = dataclasses.replace(line.triplet, edit_type=named)
    return Generation(triplet.original_prompt, line.text, triplet, "")


def _ask_model(config: PromptsConfig, captions: Sequence[str], number: int) -> list[Generation]:
    from ip2p import loading
    from ip2p.prompts.causal_lm import Request, Sampling, generate

    language_model = loading.load_language_model(config.model, revision=config.revision, device=config.device)
    requests = [Request(caption, attempt) for caption in captions for attempt in range(config.num_triplets_per_caption)]
    sampling = Sampling(
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        batch_size=config.batch_size,
    )
    with tqdm(total=len(requests), desc=f"prompts {number:05d}", unit="text", disable=None, leave=False) as bar:
        answers = generate(language_model, requests, sampling, on_answer=bar.update)
    return [_from_answer(config, request.caption, text) for request, text in zip(requests, answers, strict=True)]


def _from_answer(config: PromptsConfig, caption: str, text: str) -> Generation:
    parts = parse_answer(text)
    if parts is None:
        return Generation(caption, text, None, "unparsable")
    edit_type = name_edit_type(parts[0], config.edit_type_rules)
    triplet = EditTriplet(
        original_prompt=caption,
        edit_prompt=parts[0],
        edited_prompt=parts[1],
        edit_type=edit_type,
        source=_name_source(config.model),
    )
    return Generation(caption, text, triplet, "")


def _name_source(model: str) -> str:
    """A hub id as it is; of a local folder its name, which is the same on every machine."""
    path = Path(model).expanduser()
    return path.name if path.is_dir() else model


def judge(generations: Iterable[Generation], *, fits: Callable[[str], bool]) -> list[Generation]:
    """The same generations with the reason against each that has one."""
    seen: set[str] = set()
    judged = []
    for generation in generations:
        triplet = generation.triplet
        reason = judge_triplet(triplet, fits=fits, seen=seen) if triplet else generation.reason
        if triplet and not reason:
            seen.add(triplet.id)
        judged.append(dataclasses.replace(generation, reason=reason))
    return judged


def _length_check(config: PipelineConfig) -> Callable[[str], bool]:
    """Says of a text whether the renderer's text encoder takes it whole."""
    from ip2p import loading

    tokenizer = loading.load_tokenizer(config.rendering.model, revision=config.rendering.revision)
    limit = config.prompts.max_prompt_tokens or tokenizer.model_max_length

    @functools.cache
    def fits(text: str) -> bool:
        return len(tokenizer(text, verbose=False)["input_ids"]) <= limit

    return fits


def count(generations: Sequence[Generation], num_captions: int) -> dict[str, int]:
    """Tallies of a shard: captions, generations, kept and every reason that occurs."""
    reasons: Counter[str] = Counter(generation.reason or "kept" for generation in generations)
    return {"captions": num_captions, "generations": len(generations), "kept": 0, **reasons}


def triplets_table(generations: Sequence[Generation]) -> pa.Table:
    """A row per generation, as a shard of triplets holds it."""
    return pa.Table.from_pylist([_to_row(generation) for generation in generations], schema=SCHEMA)


def _to_row(generation: Generation) -> dict[str, str]:
    triplet = generation.triplet
    texts = {name: getattr(triplet, name) if triplet else "" for name in TEXT_COLUMNS}
    return {
        "triplet_id": triplet.id if triplet else "",
        **texts,
        "original_prompt": texts["original_prompt"] or generation.caption,
        "caption": generation.caption,
        "generation": generation.text,
        "reason": generation.reason,
    }


def _log(path: Path, counts: dict[str, int], seconds: float) -> None:
    rate = counts["generations"] / max(seconds, 1e-9)
    tallies = ", ".join(f"{name} {number}" for name, number in counts.items())
    logger.info("%s: %s; %.1f texts/s", path.name, tallies, rate)
