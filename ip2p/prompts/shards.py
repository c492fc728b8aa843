"""One shard of the prompt stage: a slice of the captions in, all its generations with their reasons out.

A shard depends on its own captions, on how they are written about and judged, and on the length that the renderer's
text encoder takes; captions that are added at the end of the file therefore leave finished shards alone. Only where
near-duplicates are left out does it also depend on the shards before it.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import PipelineConfig, PromptsConfig, fingerprint
from ip2p.prompts.answers import answer_entries, entries_of, examples_shown, knobs_that_decide, read_answers
from ip2p.prompts.asking import Answer, Request, read_answer
from ip2p.prompts.backends import check_backend, open_backend
from ip2p.prompts.captions import Entry, ReadyLine, normalise, read_captions, read_entries
from ip2p.prompts.format import Reason, name_edit_type
from ip2p.prompts.screening import Screen, WordIndex, length_check
from ip2p.records import TEXT_COLUMNS, EditTriplet

logger = logging.getLogger(__name__)

SCHEMA = pa.schema([(name, pa.string()) for name in ("triplet_id", *TEXT_COLUMNS, "caption", "generation", "reason")])


@dataclasses.dataclass(frozen=True, slots=True)
class Generation:
    """What was written about a caption: the raw text, and the triplet where it has one."""

    caption: str
    text: str
    triplet: EditTriplet | None
    reason: Reason


def num_shards(config: PipelineConfig) -> int:
    """Shards that the captions make. ValueError where there are no captions."""
    return math.ceil(len(read_entries(config.prompts, config.out)) / config.prompts.shard_size)


def asks_a_model(config: PipelineConfig) -> bool:
    """Whether there are captions, rather than ready triplets alone."""
    return any(isinstance(entry, str) for entry in read_entries(config.prompts, config.out))


def depends_on_earlier_shards(config: PipelineConfig) -> bool:
    """Whether a shard can be judged only after those before it; it can be written about at any time."""
    return config.prompts.screening.near_duplicate is not None


def write_shard(config: PipelineConfig, number: int) -> store.Sidecar:
    """Writes `triplets/part-<number>.parquet` unless it is done; returns its sidecar.

    RuntimeError where it depends on an earlier shard that is not there.
    """
    entries = entries_of(config, number)
    path = store.RunFolder(config.out).shard("triplets", number)
    before = _earlier_shards(config, number)
    wanted = _fingerprint(config, entries, before)
    done = store.finished(path, wanted)
    if done is not None:
        logger.info("%s is done: %d triplets", path.name, done.counts.get("kept", 0))
        return done
    started = time.monotonic()
    answered = answer_entries(config, number, entries)
    fits = length_check(config)
    screen = Screen(config.prompts.screening, fits, _index_of(config, before))
    written = write_about(config.prompts, entries, read_answers(config, number) if answered else [], fits=fits)
    generations = judge(written, screen)
    seconds = time.monotonic() - started
    counts = count(generations, len(entries))
    _log(path, counts, seconds)
    seconds = max(seconds, answered.seconds if answered else 0.0)
    return store.write_shard(path, triplets_table(generations), fingerprint=wanted, seconds=seconds, counts=counts)


def read_triplets(path: Path) -> list[EditTriplet]:
    """The kept triplets of a shard, in order."""
    table = pq.read_table(path, columns=[*TEXT_COLUMNS, "reason"])
    rows = table.to_pylist()
    return [EditTriplet(**{name: row[name] for name in TEXT_COLUMNS}) for row in rows if not row["reason"]]


@store.summarised("prompts")
def summarise(config: PipelineConfig) -> dict[str, Any]:
    """Adds up the counts of all shards, and of lines of the source that are not captions."""
    found = store.summarise_shards(config.out, "triplets")
    left_out = read_captions(config.prompts, config.out).left_out
    return found | ({"left_out_captions": dict(left_out)} if left_out else {})


Earlier = list[tuple[Path, str]]
"""Shards and their checksums, in order."""


def _earlier_shards(config: PipelineConfig, number: int) -> Earlier:
    if not depends_on_earlier_shards(config):
        return []
    found = []
    for path in (store.RunFolder(config.out).shard("triplets", earlier) for earlier in range(number)):
        sidecar = store.read_sidecar(path)
        if sidecar is None or not path.exists():
            raise RuntimeError(f"{path} is not there, and shard {number} is compared with it. Write it first.")
        found.append((path, sidecar.sha256))
    return found


_indices: dict[tuple[Path, float], tuple[Earlier, WordIndex]] = {}
"""The last index of each run: the next shard's is made from it."""
_indices_lock = threading.Lock()


def _index_of(config: PipelineConfig, before: Earlier) -> WordIndex | None:
    """The kept triplets of earlier shards."""
    limit = config.prompts.screening.near_duplicate
    if limit is None:
        return None
    with _indices_lock:
        known, index = _indices.get((config.out, limit), ([], WordIndex(limit)))
        if before[: len(known)] != known:
            known, index = [], WordIndex(limit)
        for path, _ in before[len(known) :]:
            for triplet in read_triplets(path):
                index.add(triplet)
        _indices[config.out, limit] = (before, index)
        return index


def _fingerprint(config: PipelineConfig, entries: Sequence[Entry], before: Earlier) -> str:
    texts = [entry if isinstance(entry, str) else [entry.text, _source_of(entry)] for entry in entries]
    more = [digest for _, digest in before]
    return fingerprint(
        "triplets",
        knobs_that_decide(config.prompts),
        texts,
        config.rendering.model,
        config.rendering.revision,
        *([more] if more else []),
        *([shown] if (shown := examples_shown(config.prompts)) else []),
    )


def _source_of(line: ReadyLine) -> str:
    return line.triplet.source if line.triplet else ""


def write_about(
    config: PromptsConfig,
    entries: Sequence[Entry],
    answers: Iterable[tuple[Request, Answer]],
    *,
    fits: Callable[[str], bool],
) -> list[Generation]:
    """Unjudged generations: a ready triplet's line, else the backend's answers; none to a caption that is too long."""
    from ip2p.prompts.backends import name_source

    ready = [_from_line(entry, config) for entry in entries if isinstance(entry, ReadyLine)]
    captions = [entry for entry in entries if isinstance(entry, str)]
    too_long = [Generation(caption, "", None, "too_long") for caption in captions if not fits(caption)]
    source = name_source(config)
    return ready + too_long + [_from_answer(config, *each, source) for each in answers]


def _from_line(line: ReadyLine, config: PromptsConfig) -> Generation:
    if line.triplet is None:
        return Generation("", line.text, None, "unparsable")
    named = line.triplet.edit_type or name_edit_type(line.triplet.edit_prompt, config.edit_type_rules)
    triplet = dataclasses.replace(line.triplet, edit_type=named)
    return Generation(triplet.original_prompt, line.text, triplet, "")


def _from_answer(config: PromptsConfig, request: Request, answer: Answer, source: str) -> Generation:
    found = read_answer(config, request, answer, source)
    if isinstance(found, str):
        return Generation(request.caption, answer.text, None, found)
    return Generation(request.caption, answer.text, found, "")


def judge(generations: Iterable[Generation], screen: Screen) -> list[Generation]:
    """The same generations with the reason against each that has one."""
    return [
        dataclasses.replace(each, reason=screen.judge(each.triplet)) if each.triplet else each for each in generations
    ]


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


def try_caption(config: PipelineConfig, caption: str, num_triplets: int = 1) -> list[Generation]:
    """What a run of this config would write about the caption and say of it. ValueError where the caption is empty."""
    caption = normalise(caption)
    if not caption:
        raise ValueError("the caption is empty. Give a text such as 'a photo of a horse in a field'.")
    check_backend(config.prompts)
    fits = _length_check(config)
    requests = [Request(caption, attempt) for attempt in range(num_triplets)] if fits(caption) else []
    with tempfile.TemporaryDirectory(prefix="ip2p-try-") as folder:
        backend = open_backend(config.prompts, Path(folder) / "journal.jsonl")
        answers = backend.answer(requests, on_answer=lambda num: None)
    written = write_about(config.prompts, [caption], zip(requests, answers, strict=True), fits=fits)
    return judge(written, Screen(config.prompts.screening, fits))


def _length_check(config: PipelineConfig) -> Callable[[str], bool]:
    """The renderer's; without a renderer at hand nothing is too long."""
    try:
        return length_check(config)
    except ValueError as error:
        logger.warning("lengths are not checked: %s", error)
        return lambda text: True
