"""What the prompt stage starts from: a text file with one caption a line, or a jsonl file of ready triplets.

Each entry stands once, whatever the file repeats, so that shards share nothing and each can judge its own duplicates.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ip2p.config import PromptsConfig
from ip2p.records import EditTriplet

logger = logging.getLogger(__name__)

ALIASES = {
    "original_prompt": ("original_prompt", "input", "caption"),
    "edit_prompt": ("edit_prompt", "edit"),
    "edited_prompt": ("edited_prompt", "output"),
}
"""Names of the three texts in jsonl files; the later ones are those of the original's files."""

WAY_OUT = "Set prompts.captions to a text file with one caption a line or a .jsonl file of triplets."


@dataclass(frozen=True, slots=True)
class ReadyLine:
    """One line of a jsonl file: a triplet, or None where the line is malformed."""

    number: int
    text: str
    triplet: EditTriplet | None
    problem: str = ""


Entry = str | ReadyLine
"""A caption to be written about, or a line that skips the language model."""


def read_entries(config: PromptsConfig) -> tuple[Entry, ...]:
    """The first `num_captions` entries without blank lines and repetitions. ValueError where there are none."""
    if not config.captions:
        raise ValueError(f"prompts.captions is not set. {WAY_OUT}")
    path = Path(config.captions).expanduser()
    if not path.is_file():
        raise ValueError(f"captions file {path} does not exist. {WAY_OUT}")
    stat = path.stat()
    entries = _read_file(path, stat.st_mtime_ns, stat.st_size)
    if not entries:
        raise ValueError(f"captions file {path} holds no caption. {WAY_OUT}")
    return entries[: config.num_captions]


def normalise(text: str) -> str:
    """One space between words, none around."""
    return " ".join(text.split())


@functools.lru_cache(maxsize=4)
def _read_file(path: Path, modified: int, size: int) -> tuple[Entry, ...]:
    lines = [(number, line) for number, line in enumerate(_read_text(path).split("\n"), start=1) if line.strip()]
    ready = path.suffix.lower() == ".jsonl"
    listed: list[Entry] = [_read_line(path, *line) if ready else normalise(line[1]) for line in lines]
    unique: dict[object, Entry] = {}
    for entry in listed:
        unique.setdefault(_identity(entry), entry)
    entries = tuple(unique.values())
    logger.info("%s: %d entries, %d repetitions dropped", path, len(entries), len(listed) - len(entries))
    return entries


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"captions file {path} is not UTF-8 text ({error.reason} at byte {error.start}). {WAY_OUT}"
        ) from None


def _identity(entry: Entry) -> object:
    if isinstance(entry, str):
        return entry
    return entry.triplet.id if entry.triplet else entry.number


def _read_line(path: Path, number: int, text: str) -> ReadyLine:
    try:
        return ReadyLine(number, text.strip(), _to_triplet(json.loads(text), path.name))
    except ValueError as error:
        logger.warning("%s line %d is rejected: %s", path, number, error)
        return ReadyLine(number, text.strip(), None, str(error))


def _to_triplet(record: object, source: str) -> EditTriplet:
    if not isinstance(record, dict):
        raise ValueError(f"a line holds one JSON object, got {type(record).__name__}")
    texts = {name: _text_of(record, name) for name in ALIASES}
    edit_type = record.get("edit_type") or ""
    if not isinstance(edit_type, str):
        raise ValueError(f"edit_type must be a string, got {edit_type!r}")
    return EditTriplet(**texts, edit_type=edit_type, source=source)


def _text_of(record: dict[str, object], name: str) -> str:
    for alias in _present(record, name):
        value = record[alias]
        if isinstance(value, str) and value.strip():
            return normalise(value)
        raise ValueError(f"{alias} must be a text that is not empty, got {value!r}")
    raise ValueError(f"{name} is missing; the line has {', '.join(map(str, record)) or 'nothing'}")


def _present(record: dict[str, object], name: str) -> Iterator[str]:
    return (alias for alias in ALIASES[name] if alias in record)
