"""What the prompt stage starts from: captions of any source, or ready triplets that skip the language model.

Repeated entries are used once. A remote source is first copied into the run folder, so that every worker reads the same
and the run does not change when the source does.
"""

from __future__ import annotations

import functools
import html
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ip2p import store
from ip2p.config import CleaningConfig, PromptsConfig
from ip2p.records import EditTriplet, content_hash
from ip2p.sources.columns import CAPTION_COLUMNS, TRIPLET_ALIASES
from ip2p.sources.files import Unreadable, open_file, parse_json, read_lines
from ip2p.sources.hub import stream_rows
from ip2p.sources.location import Location, locate
from ip2p.sources.rows import read_file

logger = logging.getLogger(__name__)

WAY_OUT = (
    "Set prompts.captions to a text file with one caption a line, a .csv or .parquet file, a hub dataset (owner/name) "
    "or a .jsonl file of triplets."
)
TABLES = (".csv", ".parquet")

Line = str | Mapping[str, object]
"""A line of text, or the columns of a table's row."""


@dataclass(frozen=True, slots=True)
class ReadyLine:
    """A line of a jsonl file: a triplet, or None if the line is malformed."""

    number: int
    text: str
    triplet: EditTriplet | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class PictureEntry:
    """A real picture to edit, by its place in the source."""

    number: int
    """Which of the source's pictures it is, from 0."""
    caption: str
    """Empty if the picture is to be shown to a model."""
    version: str
    """Hash of where it lies, and of the size and time of that file."""


Entry = str | ReadyLine | PictureEntry
"""A caption to write about, a line that skips the language model, or a picture."""


@dataclass(frozen=True, slots=True)
class Captions:
    """The entries of a source, and the number of rows that were left out, by reason."""

    entries: tuple[Entry, ...]
    left_out: Mapping[str, int]


def read_entries(config: PromptsConfig, out: Path | None = None) -> tuple[Entry, ...]:
    """Reads the first `num_captions` entries as `read_captions` does."""
    return read_captions(config, out).entries


def read_captions(config: PromptsConfig, out: Path | None = None) -> Captions:
    """Reads the entries, each once, and counts what was left out; a remote source is copied into the run folder `out`.

    ValueError if there are no entries.
    """
    if config.pictures:
        from ip2p.prompts.picture_sources import read_picture_entries

        return read_picture_entries(config)
    if not config.captions:
        raise ValueError(f"prompts.captions is not set. {WAY_OUT}")
    location = locate(config.captions, what="captions file", way_out=WAY_OUT)
    if not location.is_local:
        captions = _read_copy(location, config, out) if out else _read_remote(location, config)
    elif location.path.is_file():
        column, num = config.captions_column, config.num_captions
        captions = _read_once(location.path, location.name, column, config.cleaning, num)
    else:
        raise ValueError(f"captions file {config.captions} does not exist. {WAY_OUT}")
    if not captions.entries:
        raise ValueError(f"captions file {config.captions} holds no caption{_listed(captions.left_out)}. {WAY_OUT}")
    return captions


def read_triplet_lines(source: str) -> list[ReadyLine]:
    """Reads a .jsonl file of triplets, each once, including malformed lines. ValueError if there is no such file."""
    path = Path(source).expanduser()
    if not path.is_file() or path.suffix.lower() != ".jsonl":
        raise ValueError(f"{source} is not a .jsonl file. Give a file with one triplet a line.")
    entries = _read_once(path, path.name, None, CleaningConfig()).entries
    return [entry for entry in entries if isinstance(entry, ReadyLine)]


def numbered_lines(
    location: Location, *, split: str = "train", revision: str | None = None
) -> Iterator[tuple[int, Line]]:
    """Yields numbered lines or rows, from 1; a hub dataset is streamed. ValueError if the source cannot be read."""
    if location.kind == "hub":
        yield from enumerate(stream_rows(location, way_out=WAY_OUT, split=split, revision=revision), start=1)
        return
    try:
        if location.suffix in TABLES:
            yield from ((number, row.values) for number, row in enumerate(read_file(location), start=1))
        else:
            with open_file(location) as file:
                yield from read_lines(file)
    except Unreadable as error:
        raise ValueError(f"captions file {error} {WAY_OUT}") from error


def _read_once(path: Path, name: str, column: str | None, cleaning: CleaningConfig, num: int | None = None) -> Captions:
    """Reads a local file, again only if it has changed: every shard starts from all captions, or the first `num`."""
    stat = path.stat()
    return _read_version(path, name, column, cleaning, num, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4)
def _read_version(
    path: Path, name: str, column: str | None, cleaning: CleaningConfig, num: int | None, modified: int, size: int
) -> Captions:
    captions = _collect(numbered_lines(Location(str(path), "path")), name, path.suffix.lower(), column, cleaning)
    return Captions(captions.entries[:num], captions.left_out)


def _read_remote(location: Location, config: PromptsConfig) -> Captions:
    limit = config.num_captions
    if location.kind == "hub" and limit is None:
        raise ValueError(f"prompts.num_captions is not set for the hub dataset {location.word}. Set how many to take.")
    lines = numbered_lines(location, split=config.captions_split, revision=config.captions_revision)
    return _collect(lines, location.name, location.suffix, config.captions_column, config.cleaning, limit)


def _read_copy(location: Location, config: PromptsConfig, out: Path) -> Captions:
    """Reads the copy in the run folder, and makes it the first time."""
    settings = (config.captions_column, config.captions_split, config.captions_revision, config.cleaning)
    name = content_hash(config.captions, *settings, config.num_captions)
    is_ready = holds_triplets(location.suffix, config.captions_column)
    path, counts = (out / "captions" / f"{name}{ending}" for ending in (".jsonl" if is_ready else ".txt", ".json"))
    if not counts.is_file():
        captions = _read_remote(location, config)
        lines = [entry.text if isinstance(entry, ReadyLine) else entry for entry in captions.entries]
        store.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
        store.write_json(counts, {"captions": config.captions, "left_out": dict(captions.left_out)})
    entries = _read_once(path, location.name, None, CleaningConfig(), config.num_captions).entries
    return Captions(entries, store.read_json(counts)["left_out"])


def _collect(
    lines: Iterable[tuple[int, Line]],
    name: str,
    suffix: str,
    column: str | None,
    cleaning: CleaningConfig,
    limit: int | None = None,
) -> Captions:
    """Cleans the entries of a source called `name`, in its order, each once, up to `limit`."""
    left_out: Counter[str] = Counter()
    entries: dict[object, str | ReadyLine] = {}
    is_ready = holds_triplets(suffix, column)
    for number, line in lines:
        if is_ready and isinstance(line, str):
            entry: str | ReadyLine = _ready_line(name, number, line)
        else:
            caption = _caption_of(line, None if suffix == ".txt" else column, name, number)
            entry, reason = clean_caption(caption, cleaning)
            if reason:
                left_out[reason] += 1
                continue
        triplet = None if isinstance(entry, str) else entry.triplet
        identity = entry if isinstance(entry, str) else triplet.id if triplet else entry.number
        left_out["duplicate"] += identity in entries
        entries.setdefault(identity, entry)
        if limit is not None and len(entries) >= limit:
            break
    counts = {reason: num for reason, num in left_out.items() if num}
    logger.info("%s: %d entries%s", name, len(entries), _listed(counts))
    return Captions(tuple(entries.values()), counts)


def holds_triplets(suffix: str, column: str | None) -> bool:
    """Returns whether a source holds ready triplets: a .jsonl without a named caption column."""
    return suffix == ".jsonl" and column is None


def _listed(left_out: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{num} {reason}' for reason, num in left_out.items())})" if left_out else ""


def _caption_of(line: Line, column: str | None, name: str, number: int) -> str:
    """Returns the caption of a line; empty if the line is not JSON or has none. ValueError names the columns."""
    if isinstance(line, str):
        if column is None:
            return line
        try:
            line = parse_json(line)
        except ValueError as error:
            logger.warning("%s line %d is left out: %s", name, number, error)
            return ""
    if not isinstance(line, Mapping):
        raise ValueError(f"{name} line {number} must hold one JSON object, got {type(line).__name__}.")
    present = column or next((candidate for candidate in CAPTION_COLUMNS if candidate in line), None)
    if present is None or present not in line:
        raise ValueError(
            f"{name} has no column {column or 'named ' + ' or '.join(CAPTION_COLUMNS)}; it has "
            f"{', '.join(map(str, line)) or 'none'}. Set prompts.captions_column to one of them."
        )
    value = line[present]
    return value if isinstance(value, str) else ""


def _ready_line(name: str, number: int, text: str) -> ReadyLine:
    try:
        return ReadyLine(number, text.strip(), to_triplet(parse_json(text), name))
    except ValueError as error:
        logger.warning("%s line %d is rejected: %s", name, number, error)
        return ReadyLine(number, text.strip(), None, str(error))


def to_triplet(record: object, source: str) -> EditTriplet:
    """Makes a triplet of an object with any of the known names. ValueError says what is wrong with it."""
    if not isinstance(record, Mapping):
        raise ValueError(f"a line must hold one JSON object, got {type(record).__name__}")
    texts = {name: _text_of(record, name) for name in TRIPLET_ALIASES}
    edit_type = record.get("edit_type") or ""
    if not isinstance(edit_type, str):
        raise ValueError(f"edit_type must be a string, got {edit_type!r}")
    return EditTriplet(**texts, edit_type=edit_type, source=source)


def _text_of(record: Mapping[str, object], name: str) -> str:
    alias = next((alias for alias in TRIPLET_ALIASES[name] if alias in record), None)
    if alias is None:
        raise ValueError(f"{name} is missing; the line has {', '.join(map(str, record)) or 'nothing'}")
    value = record[alias]
    if isinstance(value, str) and value.strip():
        return normalise(value)
    raise ValueError(f"{alias} must be a text that is not empty, got {value!r}")


TAG = re.compile(r"<[^<>]{1,200}>")
ADDRESS = re.compile(r"(https?://|www\.)\S+|\S+@\S+\.\w+", re.IGNORECASE)
FILE_NAME = re.compile(r"\b[\w-]+\.(jpe?g|png|gif|webp|tiff?|bmp|svg|pdf)\b", re.IGNORECASE)
MIN_LEFT = 0.25
"""Lowest share of a text that must be left once its markup is removed; below it, the text was not a caption."""


def normalise(text: str) -> str:
    """Leaves one space between words and none around them."""
    return " ".join(text.split())


def clean_caption(text: str, config: CleaningConfig) -> tuple[str, str]:
    """Returns the cleaned caption and the reason against it, which is empty if it is used."""
    plain = normalise(text)
    if config.strip_markup:
        stripped = strip_markup(plain)
        if len(stripped) < MIN_LEFT * len(plain):
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
    """Removes tags, entities, addresses and names of image files."""
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
"""Function words of English, and of German, French, Spanish, Italian, Portuguese, Dutch and others unless English."""
WORD = re.compile(r"[^\W\d_]+")


def reads_as(text: str, language: str) -> bool:
    """Returns whether a text reads as the language; `any` takes every text."""
    return language == "any" or reads_as_english(text)


def reads_as_english(text: str) -> bool:
    """Returns whether the letters are mostly Latin and foreign function words do not outnumber the English ones."""
    letters = [letter for letter in text if letter.isalpha()]
    num_latin = sum(letter.isascii() or unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
    if not letters or num_latin < LATIN_SHARE * len(letters):
        return False
    words = WORD.findall(text)
    foreign = sum(word in FOREIGN for word in words)  # names in capitals do not count
    return foreign <= sum(word.lower() in ENGLISH for word in words)
