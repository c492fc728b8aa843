"""The raw answers about a shard of captions, stored so that judging them again needs no model.

Answers depend on the captions, on what is asked, and on the length limit of the renderer's text encoder: a caption that
is too long is not asked about. They do not depend on how they are judged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ip2p import store
from ip2p.config import PipelineConfig, PromptsConfig, fingerprint, to_dict
from ip2p.config.fields import ANSWERS_FREE, RESULT_FREE, names_with
from ip2p.prompts.asking import Answer, Request, Subject, read_examples
from ip2p.prompts.backends import open_backend
from ip2p.prompts.captions import Entry, PictureEntry, read_entries
from ip2p.prompts.pictures import read_pictures, store_pictures
from ip2p.prompts.screening import length_check
from ip2p.records import LATER_COLUMNS
from ip2p.sources.content import later_contents, models_of, note

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("caption", pa.string()),
        ("attempt", pa.int32()),
        ("text", pa.string()),
        ("earlier", pa.list_(pa.string())),
        ("reason", pa.string()),
        ("picture", pa.string()),
    ]
)
_FIRST = (
    "captions num_captions num_triplets_per_caption model revision shard_size batch_size temperature device "
    "max_new_tokens max_prompt_tokens edit_type_rules seed"
)
FIRST_KNOBS = _FIRST.split()
"""Knobs of the first version; later ones count only if they differ from their default, so that its shards stay done."""
JUDGING = ("screening", "edit_type_rules")
"""Knobs that only act on answers that exist."""


def entries_of(config: PipelineConfig, number: int) -> tuple[Entry, ...]:
    """Returns a shard's captions and ready lines. ValueError if there is no such shard."""
    size = config.prompts.shard_size
    entries = read_entries(config.prompts, config.out)[number * size : (number + 1) * size]
    if number < 0 or not entries:
        raise ValueError(f"triplets shard {number} has no captions. Ask for shards 0 to num_shards(config) - 1.")
    return entries


def knobs_that_decide(config: PromptsConfig, *, without: Sequence[str] = ()) -> dict[str, object]:
    """Collects what decides the answers, or the triplets, as plain values."""
    default, free = to_dict(PromptsConfig()), names_with(PromptsConfig, RESULT_FREE, ANSWERS_FREE)
    deciding = {
        name: value
        for name, value in to_dict(config).items()
        if name not in free.union(without) and (name in FIRST_KNOBS or value != default.get(name))
    }
    form = config.server.response_format
    return deciding | ({"response_format": form} if config.backend == "server" and form != "none" else {})


def write_answers(config: PipelineConfig, number: int) -> store.Sidecar | None:
    """Writes `answers/part-<number>.parquet` unless it is done; None if no caption is to be asked about."""
    return answer_subjects(config, number, subjects_of(config, number, entries_of(config, number)))


def subjects_of(config: PipelineConfig, number: int, entries: Sequence[Entry]) -> list[Subject]:
    """Returns what a shard's entries are about, ready lines aside; stores its pictures if it has any."""
    pictures = [entry for entry in entries if isinstance(entry, PictureEntry)]
    if pictures:
        return store_pictures(config, number, pictures)
    return [Subject(entry) for entry in entries if isinstance(entry, str)]


def answer_subjects(config: PipelineConfig, number: int, subjects: Sequence[Subject]) -> store.Sidecar | None:
    """Writes a shard's answers as `write_answers` does."""
    askable = [subject for subject in subjects if not subject.reason]
    if not askable:
        return None
    note(config.out, models_of(config, "prompts"))
    path, digest = _path(config, number), _fingerprint(config, [subject.identity for subject in askable])
    done = store.finished(path, digest)
    if done is not None:
        return done
    started = time.monotonic()
    fits, attempts = length_check(config), range(config.prompts.num_triplets_per_caption)
    short_enough = [subject for subject in askable if fits(subject.caption)]
    requests = [Request(each.caption, attempt, each.picture) for each in short_enough for attempt in attempts]
    answers = list[Answer]()
    if requests:
        pictures = read_pictures(config.out, number) if any(request.is_shown for request in requests) else {}
        backend = open_backend(config.prompts, journal_path(config, number), pictures)
        with tqdm(total=len(requests), desc=f"prompts {number:05d}", unit="text", disable=None, leave=False) as bar:
            answers = backend.answer(requests, on_answer=bar.update)
    seconds = time.monotonic() - started
    counts = {"captions": len(askable), "answers": len(answers), "repaired": sum(bool(a.earlier) for a in answers)}
    table = _table(requests, answers)
    return store.write_shard(path, table, fingerprint=digest, seconds=seconds, counts=counts, optional=LATER_COLUMNS)


def read_answers(config: PipelineConfig, number: int) -> list[tuple[Request, Answer]]:
    """Reads the requests of a shard with their answers, in order."""
    rows = pq.read_table(_path(config, number), schema=SCHEMA).to_pylist()
    return [
        (
            Request(row["caption"], row["attempt"], row["picture"] or ""),
            Answer(row["text"], tuple(row["earlier"]), row["reason"]),
        )
        for row in rows
    ]


def journal_path(config: PipelineConfig, number: int) -> Path:
    """Returns the file that a server's answers are appended to as they arrive."""
    return config.out / "answers" / f"journal-{number:05d}.jsonl"


def _path(config: PipelineConfig, number: int) -> Path:
    return store.RunFolder(config.out).shard("answers", number)


def _fingerprint(config: PipelineConfig, captions: Sequence[str | list[str]]) -> str:
    """Hashes what decides the answers about captions, each alone or with the hash of its picture."""
    knobs, examples = knobs_that_decide(config.prompts, without=JUDGING), examples_shown(config.prompts)
    made_with = (
        config.rendering.model,
        config.rendering.revision,
        *later_contents(config.out, models_of(config, "prompts")),
    )
    return fingerprint("answers", knobs, examples, list(captions), *made_with)


def examples_shown(config: PromptsConfig) -> list[str]:
    """Returns the examples' hashes, if any are shown: the content of the file may change."""
    shows = config.backend in ("chat", "server") and config.num_examples
    return [example.id for example in read_examples(config.examples)] if shows else []


def _table(requests: Sequence[Request], answers: Sequence[Answer]) -> pa.Table:
    rows = [
        {
            "caption": request.caption,
            "attempt": request.attempt,
            "text": answer.text,
            "earlier": list(answer.earlier),
            "reason": answer.reason,
            "picture": request.picture,
        }
        for request, answer in zip(requests, answers, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)
