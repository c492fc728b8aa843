"""What the prompt stage starts from: captions of any source, or ready triplets that skip the language model.

Each entry stands once, whatever the source repeats. What comes from elsewhere is copied into the run folder first, so
that every worker reads the same and the run stays the same when the source changes.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ip2p import store
from ip2p.config import CleaningConfig, PromptsConfig
from ip2p.records import EditTriplet, content_hash
from ip2p.sources.captions import WAY_OUT, Row, caption_of, is_hub_id, is_remote, read_rows, suffix_of

logger = logging.getLogger(__name__)

ALIASES = {
    "original_prompt": ("original_prompt", "input", "caption"),
    "edit_prompt": ("edit_prompt", "edit"),
    "edited_prompt": ("edited_prompt", "output"),
}
"""Names of the three texts in jsonl files; the later ones are those of the original's files."""


@dataclass(frozen=True, slots=True)
class ReadyLine:
    """One line of a jsonl file: a triplet, or None where the line is malformed."""

    number: int
    text: str
    triplet: EditTriplet | None
    problem: str = ""


Entry = str | ReadyLine
"""A caption to be written about, or a line that skips the language model."""


@dataclass(frozen=True, slots=True)
class Captions:
    """What a source gave."""

    entries: tuple[Entry, ...]
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Rows that are no entry, by reason."""


def read_entries(config: PromptsConfig, out: Path | None = None) -> tuple[Entry, ...]:
    """The first `num_captions` entries without blank lines and repetitions. ValueError where there are none."""
    return read_captions(config, out).entries


def read_captions(config: PromptsConfig, out: Path | None = None) -> Captions:
    """The entries with the counts of what was left out; `out` is the run folder that a remote source is copied to."""
    if not config.captions:
        raise ValueError(f"prompts.captions is not set. {WAY_OUT}")
    found = _read_remote(config, out) if is_remote(config.captions) else _read_local(config)
    if not found.entries:
        raise ValueError(f"captions file {config.captions} holds no caption{_told(found.left_out)}. {WAY_OUT}")
    return Captions(found.entries[: config.num_captions], found.left_out)


def holds_triplets(config: PromptsConfig) -> bool:
    """Whether the source is a .jsonl of ready triplets."""
    return suffix_of(config.captions) == ".jsonl" and config.captions_column is None


def _told(left_out: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{num} {reason}' for reason, num in left_out.items())})" if left_out else ""


def _read_local(config: PromptsConfig) -> Captions:
    path = Path(config.captions).expanduser()
    if not path.is_file():
        raise ValueError(f"captions file {path} does not exist. {WAY_OUT}")
    stat = path.stat()
    wanted = (config.captions, config.captions_column, config.cleaning)
    return _read_file(*wanted, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4)
def _read_file(source: str, column: str | None, cleaning: Any, modified: int, size: int) -> Captions:
    return _collect(PromptsConfig(captions=source, captions_column=column, cleaning=cleaning), None)


def _read_remote(config: PromptsConfig, out: Path | None) -> Captions:
    """From the run folder's copy, which is made the first time."""
    if out is None:
        return _collect(config, config.num_captions)
    asked = (config.captions_column, config.captions_split, config.captions_revision, config.cleaning)
    name = content_hash(config.captions, *asked, config.num_captions)
    suffix = ".jsonl" if holds_triplets(config) else ".txt"
    path, counts = (out / "captions" / f"{name}{ending}" for ending in (suffix, ".json"))
    if not counts.is_file():
        found = _collect(config, config.num_captions)
        _copy(found, path)
        store.write_json(counts, {"captions": config.captions, "left_out": dict(found.left_out)})
    copied = _read_local(PromptsConfig(captions=str(path)))
    return Captions(_with_source(copied.entries, config.captions), store.read_json(counts)["left_out"])


def _copy(found: Captions, path: Path) -> None:
    lines = [entry if isinstance(entry, str) else entry.text for entry in found.entries]
    store.write_atomic(path, lambda file: file.writelines(f"{line}\n".encode() for line in lines))


def _with_source(entries: tuple[Entry, ...], source: str) -> tuple[Entry, ...]:
    """Ready triplets under the name of what they come from, not of their copy."""
    name = source if is_hub_id(source) else Path(source).name
    return tuple(
        dataclasses.replace(entry, triplet=dataclasses.replace(entry.triplet, source=name))
        if isinstance(entry, ReadyLine) and entry.triplet
        else entry
        for entry in entries
    )


def _collect(config: PromptsConfig, limit: int | None) -> Captions:
    """Entries in the source's order, each once, up to a limit."""
    left_out: Counter[str] = Counter()
    unique: dict[object, Entry] = {}
    for entry in _entries(config, read_rows(config), left_out):
        identity = _identity(entry)
        left_out["duplicate"] += identity in unique
        unique.setdefault(identity, entry)
        if limit is not None and len(unique) >= limit:
            break
    counts = {reason: num for reason, num in left_out.items() if num}
    logger.info("%s: %d entries%s", config.captions, len(unique), _told(counts))
    return Captions(tuple(unique.values()), counts)


def _entries(config: PromptsConfig, rows: Iterable[tuple[int, Row]], left_out: Counter[str]) -> Iterator[Entry]:
    ready, name = holds_triplets(config), Path(config.captions).name
    for number, row in rows:
        if ready and isinstance(row, str):
            yield _read_line(name, number, row)
            continue
        caption, reason = clean_caption(_caption_of(row, config, number), config.cleaning)
        if reason:
            left_out[reason] += 1
        else:
            yield caption


def _caption_of(row: Row, config: PromptsConfig, number: int) -> str:
    column = config.captions_column if suffix_of(config.captions) != ".txt" else None
    try:
        return caption_of(row, column, config.captions)
    except json.JSONDecodeError as error:
        logger.warning("%s line %d is left out: %s", config.captions, number, error)
        return ""


def _identity(entry: Entry) -> object:
    if isinstance(entry, str):
        return entry
    return entry.triplet.id if entry.triplet else entry.number


def _read_line(name: str, number: int, text: str) -> ReadyLine:
    try:
        return ReadyLine(number, text.strip(), to_triplet(json.loads(text), name))
    except ValueError as error:
        logger.warning("%s line %d is rejected: %s", name, number, error)
        return ReadyLine(number, text.strip(), None, str(error))


def to_triplet(record: object, source: str) -> EditTriplet:
    """A line's object under any of the known names. ValueError says what is wrong with it."""
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


Dropped = Literal["", "empty", "markup", "too_short", "too_long", "language"]

TAG = re.compile(r"<[^<>]{1,200}>")
ADDRESS = re.compile(r"(https?://|www\.)\S+|\S+@\S+\.\w+", re.IGNORECASE)
FILE_NAME = re.compile(r"\b[\w-]+\.(jpe?g|png|gif|webp|tiff?|bmp|svg|pdf)\b", re.IGNORECASE)
LITTLE_ELSE = 0.25
"""A caption of which less than this share is left was no caption."""


def normalise(text: str) -> str:
    """One space between words, none around."""
    return " ".join(text.split())


def clean_caption(text: str, config: CleaningConfig) -> tuple[str, Dropped]:
    """The caption as it is used, and the reason against it where there is one."""
    plain = normalise(text)
    if config.strip_markup:
        stripped = strip_markup(plain)
        if len(stripped) < LITTLE_ELSE * len(plain):
            return stripped, "markup"
        plain = stripped
    if not plain:
        return plain, "empty"
    num_words = len(plain.split())
    if num_words < config.min_words:
        return plain, "too_short"
    if config.max_words is not None and num_words > config.max_words:
        return plain, "too_long"
    return plain, "" if reads_as(plain, config.language) else "language"


def strip_markup(text: str) -> str:
    """Without tags, entities, addresses and names of picture files."""
    plain = TAG.sub(" ", html.unescape(text))
    for pattern in (ADDRESS, FILE_NAME):
        plain = pattern.sub(" ", plain)
    return normalise(plain).strip(" |-–—:;,")


LATIN_SHARE = 0.9
_ENGLISH = (
    "the of and with in on at by for from to is are an its his her their this that as over under near beside into a "
    "some between behind through up down out one two it he she who while during after before make turn add remove"
)
_FOREIGN = (
    "der das und ein eine einen einem mit auf im von zu den dem des ist für bei aus nach nicht sich wie zum zur "
    "le la les un une et du dans sur avec pour par au aux est en sous chez ce cette qui que "
    "el los las una y con del al para por es su sus como este esta "
    "il lo gli uno di da nel nella sul sulla che della dei delle degli al alla "
    "os um uma das na nas nos com em ao pela pelo "
    "de het een van met op naar voor uit bij aan zijn niet "
    "og på med til av för och ett som är w z się nie ve bir ile için"
)
ENGLISH, FOREIGN = frozenset(_ENGLISH.split()), frozenset(_FOREIGN.split())
"""Function words of English, and of German, French, Spanish, Italian, Portuguese, Dutch and others what it has not."""
WORD = re.compile(r"[^\W\d_]+")


def reads_as(text: str, language: str) -> bool:
    """True for any text where the language is `any`."""
    return language == "any" or reads_as_english(text)


def reads_as_english(text: str) -> bool:
    """Mostly Latin letters, and at least as many English as foreign function words."""
    letters = [letter for letter in text if letter.isalpha()]
    if not letters or sum(map(_is_latin, letters)) < LATIN_SHARE * len(letters):
        return False
    words = WORD.findall(text)
    foreign = sum(word in FOREIGN for word in words)  # names in capitals do not count
    return foreign <= sum(word.lower() in ENGLISH for word in words)


def _is_latin(letter: str) -> bool:
    return letter.isascii() or unicodedata.name(letter, "").startswith("LATIN")
