"""One shard of the prompt stage: a slice of the captions in, all its generations with their reasons out.

A shard depends on its own captions, on how they are written about and judged, and on the length limit of the renderer's
text encoder; captions added at the end of the file therefore leave finished shards alone. Only if near-duplicates are
rejected does it also depend on the shards before it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import PipelineConfig, PromptsConfig, fingerprint
from ip2p.prompts.answers import (
    answer_subjects,
    entries_of,
    examples_shown,
    knobs_that_decide,
    read_answers,
    subjects_of,
)
from ip2p.prompts.asking import Answer, Request, Subject
from ip2p.prompts.backends import check_backend, name_source, open_backend
from ip2p.prompts.captions import Entry, PictureEntry, ReadyLine, normalise, read_captions, read_entries
from ip2p.prompts.format import Reason, name_edit_type, parse_look, parse_reply
from ip2p.prompts.pictures import pictures_fingerprint
from ip2p.prompts.screening import Screen, WordIndex, length_check
from ip2p.records import LATER_COLUMNS, TEXT_COLUMNS, EditTriplet
from ip2p.sources.content import later_contents, models_of, note

logger = logging.getLogger(__name__)

SCHEMA = pa.schema([(name, pa.string()) for name in ("triplet_id", *TEXT_COLUMNS, "caption", "generation", "reason")])


@dataclasses.dataclass(frozen=True, slots=True)
class Generation:
    """What was written about a caption: the raw text, and the triplet or the reason against it."""

    caption: str
    text: str
    triplet: EditTriplet | None
    reason: Reason


def num_shards(config: PipelineConfig) -> int:
    """Returns the number of shards that the captions fill. ValueError if there are no captions."""
    return math.ceil(len(read_entries(config.prompts, config.out)) / config.prompts.shard_size)


def asks_a_model(config: PipelineConfig) -> bool:
    """Returns whether there are captions to write about, not only ready triplets."""
    return any(not isinstance(entry, ReadyLine) for entry in read_entries(config.prompts, config.out))


def depends_on_earlier_shards(config: PipelineConfig) -> bool:
    """Returns whether a shard can only be judged after those before it; it can be written about at any time."""
    return config.prompts.screening.near_duplicate is not None


def write_shard(config: PipelineConfig, number: int) -> store.Sidecar:
    """Writes `triplets/part-<number>.parquet` unless it is done; returns its sidecar.

    RuntimeError if it depends on an earlier shard that is missing.
    """
    entries = entries_of(config, number)
    path = store.RunFolder(config.out).shard("triplets", number)
    earlier = _earlier_shards(config, number)
    note(config.out, models_of(config, "prompts"))
    digest = _fingerprint(config, entries, earlier)
    done = store.finished(path, digest)
    subjects = subjects_of(config, number, entries)
    if done is not None:
        logger.info("%s is done: %d triplets", path.name, done.counts.get("kept", 0))
        return done
    started = time.monotonic()
    answered = answer_subjects(config, number, subjects)
    answers = read_answers(config, number) if answered else []
    screen = Screen(config.prompts.screening, length_check(config), _index_of(config, earlier))
    generations = judge(write_about(config.prompts, entries, subjects, answers), screen)
    seconds = time.monotonic() - started
    counts = count(generations, len(entries))
    tallies = ", ".join(f"{name} {num}" for name, num in counts.items())
    logger.info("%s: %s; %.1f texts/s", path.name, tallies, len(generations) / max(seconds, 1e-9))
    seconds = max(seconds, answered.seconds if answered else 0.0)
    return store.write_shard(
        path,
        triplets_table(generations),
        fingerprint=digest,
        seconds=seconds,
        counts=counts,
        optional=LATER_COLUMNS,
    )


def shard_states(config: PipelineConfig) -> list[store.State]:
    """Returns the state of every shard, without reading one."""
    states: list[store.State] = []
    for number in range(num_shards(config)):
        try:
            digest = _fingerprint(config, entries_of(config, number), _earlier_shards(config, number))
        except RuntimeError:  # a shard that it depends on is missing
            digest = ""
        states.append(store.state_of(store.RunFolder(config.out).shard("triplets", number), digest))
    return states


def read_generations(config: PipelineConfig, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yields the rows of a run's shards, in order. ValueError if there are none."""
    paths = store.RunFolder(config.out).shards("triplets")
    if not paths:
        raise ValueError(f"{config.out} has no triplets. Run `ip2p dataset` into that folder first.")
    tables = (pq.read_table(path, schema=SCHEMA, columns=list(columns)) for path in paths)
    return ({name: value or "" for name, value in row.items()} for table in tables for row in table.to_pylist())


def read_triplets(path: Path) -> list[EditTriplet]:
    """Reads the kept triplets of a shard, in order."""
    rows = pq.read_table(path, schema=SCHEMA, columns=[*TEXT_COLUMNS, "reason"]).to_pylist()
    return [EditTriplet(**{name: row[name] or "" for name in TEXT_COLUMNS}) for row in rows if not row["reason"]]


@store.summarised("prompts")
def summarise(config: PipelineConfig) -> dict[str, object]:
    """Adds up the counts of all shards, and of rows of the source that were left out."""
    counts = store.summarise_shards(config.out, "triplets")
    left_out = read_captions(config.prompts, config.out).left_out
    return counts | ({"left_out_captions": dict(left_out)} if left_out else {})


Earlier = list[tuple[Path, str]]
"""Shards and their checksums, in order."""


def _earlier_shards(config: PipelineConfig, number: int) -> Earlier:
    if not depends_on_earlier_shards(config):
        return []
    shards = []
    for path in (store.RunFolder(config.out).shard("triplets", earlier) for earlier in range(number)):
        note = store.sidecar_path(path)
        stat = note.stat() if note.exists() and path.exists() else None
        digest = _checksum_of(path, stat.st_ino, stat.st_mtime_ns) if stat else None
        if digest is None:
            raise RuntimeError(f"{path} is missing, and shard {number} is compared with it. Write it first.")
        shards.append((path, digest))
    return shards


@functools.lru_cache(maxsize=2**16)
def _checksum_of(path: Path, *version: int) -> str | None:
    """Reads what a version of a shard's sidecar names: every later shard asks for it."""
    sidecar = store.read_sidecar(path)
    return sidecar.sha256 if sidecar else None


_indices: dict[tuple[Path, float], tuple[Earlier, WordIndex]] = {}
"""The last index of each run, which the next shard's extends."""
_indices_lock = threading.Lock()


def _index_of(config: PipelineConfig, earlier: Earlier) -> WordIndex | None:
    """Indexes the kept triplets of earlier shards, if near-duplicates are rejected."""
    limit = config.prompts.screening.near_duplicate
    if limit is None:
        return None
    with _indices_lock:
        indexed, index = _indices.get((config.out, limit), ([], WordIndex(limit)))
        if earlier[: len(indexed)] != indexed:
            indexed, index = [], WordIndex(limit)
        for path, _ in earlier[len(indexed) :]:
            for triplet in read_triplets(path):
                index.add(triplet)
        _indices[config.out, limit] = (earlier, index)
        return index


def _fingerprint(config: PipelineConfig, entries: Sequence[Entry], earlier: Earlier) -> str:
    texts = [_identity(entry) for entry in entries]
    pictures = [entry for entry in entries if isinstance(entry, PictureEntry)]
    stored = [pictures_fingerprint(config.rendering, pictures)] if pictures else []
    optional = [digest for _, digest in earlier], examples_shown(config.prompts), stored
    return fingerprint(
        "triplets",
        knobs_that_decide(config.prompts),
        texts,
        config.rendering.model,
        config.rendering.revision,
        *filter(None, optional),
        *later_contents(config.out, models_of(config, "prompts")),
    )


def _identity(entry: Entry) -> str | list[str]:
    """Returns what stands for an entry in a fingerprint."""
    if isinstance(entry, PictureEntry):
        return [entry.caption, entry.version]
    return entry if isinstance(entry, str) else [entry.text, entry.triplet.source if entry.triplet else ""]


def write_about(
    config: PromptsConfig,
    entries: Sequence[Entry],
    subjects: Sequence[Subject],
    answers: Sequence[tuple[Request, Answer]],
) -> list[Generation]:
    """Makes generations that are not judged yet: of ready lines, then of subjects without an answer, then of answers.

    Only captions that are too long and pictures that cannot be used are not asked about.
    """
    ready = [_from_line(entry, config) for entry in entries if isinstance(entry, ReadyLine)]
    answered = {(request.caption, request.picture) for request, _ in answers}
    unasked = [each for each in subjects if each.reason or (each.caption, each.picture) not in answered]
    left_out = [Generation(each.caption, "", None, each.reason or "too_long") for each in unasked]
    source = name_source(config)
    return ready + left_out + [read_answer(config, request, answer, source) for request, answer in answers]


def _from_line(line: ReadyLine, config: PromptsConfig) -> Generation:
    if line.triplet is None:
        return Generation("", line.text, None, "unparsable")
    edit_type = line.triplet.edit_type or name_edit_type(line.triplet.edit_prompt, config.edit_type_rules)
    triplet = dataclasses.replace(line.triplet, edit_type=edit_type)
    return Generation(triplet.original_prompt, line.text, triplet, "")


def read_answer(config: PromptsConfig, request: Request, answer: Answer, source: str) -> Generation:
    """Makes a triplet of a caption and its answer, or states why that fails."""
    parsed = answer.reason or _parse(config, request, answer.text)
    if isinstance(parsed, str):
        return Generation(request.caption, answer.text, None, parsed)
    original_prompt, edit_type, edit_prompt, edited_prompt = parsed
    triplet = EditTriplet(
        original_prompt=original_prompt,
        edit_prompt=edit_prompt,
        edited_prompt=edited_prompt,
        edit_type=edit_type,
        source=source,
        picture=request.picture,
    )
    return Generation(request.caption, answer.text, triplet, "")


def _parse(config: PromptsConfig, request: Request, text: str) -> tuple[str, str, str, str] | Reason:
    """Returns the original caption, which a model that looked has written, edit type, instruction, edited caption."""
    if request.is_shown:
        return parse_look(config, text)
    parsed = parse_reply(config, text)
    return parsed if isinstance(parsed, str) else (request.caption, *parsed)


def judge(generations: Iterable[Generation], screen: Screen) -> list[Generation]:
    """Adds to each generation the screen's reason against its triplet."""
    return [
        dataclasses.replace(generation, reason=screen.judge(generation.triplet)) if generation.triplet else generation
        for generation in generations
    ]


def count(generations: Sequence[Generation], num_captions: int) -> dict[str, int]:
    """Counts a shard's captions, generations, kept ones and every reason that occurs."""
    reasons: Counter[str] = Counter(generation.reason or "kept" for generation in generations)
    return {"captions": num_captions, "generations": len(generations), "kept": 0, **reasons}


def triplets_table(generations: Sequence[Generation]) -> pa.Table:
    """Makes the table of a shard: a row per generation."""
    rows = []
    for generation in generations:
        triplet, caption = generation.triplet, generation.caption
        texts = {name: getattr(triplet, name) if triplet else "" for name in TEXT_COLUMNS}
        texts["original_prompt"] = texts["original_prompt"] or caption
        identity = {"triplet_id": triplet.id if triplet else "", "caption": caption}
        rows.append({**identity, **texts, "generation": generation.text, "reason": generation.reason})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def try_caption(config: PipelineConfig, caption: str, num_triplets: int = 1) -> list[Generation]:
    """Writes about a caption and judges it as a run of this config would. ValueError if the caption is empty."""
    caption = normalise(caption)
    if not caption:
        raise ValueError("the caption is empty. Give a text such as 'a photo of a horse in a field'.")
    check_backend(config.prompts)
    fits = _length_check(config)
    requests = [Request(caption, attempt) for attempt in range(num_triplets)] if fits(caption) else []
    with tempfile.TemporaryDirectory(prefix="ip2p-try-") as folder:
        backend = open_backend(config.prompts, Path(folder) / "journal.jsonl")
        answers = backend.answer(requests, on_answer=lambda num: None)
    written = write_about(config.prompts, [], [Subject(caption)], list(zip(requests, answers, strict=True)))
    return judge(written, Screen(config.prompts.screening, fits))


def _length_check(config: PipelineConfig) -> Callable[[str], bool]:
    """Returns the renderer's check; if there is no renderer, nothing is too long."""
    try:
        return length_check(config)
    except ValueError as error:
        logger.warning("lengths are not checked: %s", error)
        return lambda text: True
