"""Browses pairs of a run, of parquet files or of the hub, by edit type, verdict, score and words. No gradio here.

Only texts and scores are kept in memory; pictures are read from their row when they are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import inf
from pathlib import Path
from typing import Any

from PIL import Image

from ip2p.config.files import read_run_data
from ip2p.filtering import REASONS
from ip2p.images import open_picture
from ip2p.records import content_hash
from ip2p.scoring import SCORE_COLUMNS, SCORES
from ip2p.sources.columns import find_column, image_columns
from ip2p.sources.hub import stream_rows
from ip2p.sources.location import data_files, held_out_files, locate
from ip2p.sources.row import Row, Table
from ip2p.sources.rows import open_table
from ip2p.sources.tables import ListTable, ParquetTable
from ip2p.store import RunFolder, write_atomic

TEXTS = {
    "edit_prompt": "Instruction",
    "original_prompt": "Original caption",
    "edited_prompt": "Edited caption",
    "edit_type": "Edit type",
}
"""The columns of texts, and what to call them."""
VERDICT = ("accepted", "reason")
ACCEPTED = "accepted"
HUB_ROWS = 200
"""Rows that are fetched from a hub dataset."""
WAY_OUT = "Give a run folder, a folder of parquet files or a hub id (owner/name)."
ROUNDING = 1e-5
"""Cosines of equal pictures are slightly above 1."""
GAP = 4
CARD_HEIGHT = 256
"""Height to which larger pictures are reduced on a card."""
NUM_SAMPLES = 6
SAMPLED_ROWS = 48
"""First rows among which samples are spread: further ones would mean reading further row groups."""


@dataclass(frozen=True)
class Pairs:
    """All rows: their texts and scores, and where their pictures are read from."""

    pictures: Table
    sides: tuple[str, str]
    """Names of the columns of the original and of the edited image."""
    values: Mapping[str, Sequence[Any]]
    """Values by our names of the columns: texts, empty if missing, and scores, None if missing."""

    def __len__(self) -> int:
        return len(self.pictures)

    @cached_property
    def verdicts(self) -> Sequence[str]:
        """The rows' verdicts, `accepted` or a reason; empty if the pairs were not filtered."""
        if not all(name in self.values for name in VERDICT):  # a dataset's own "reason" may be anything
            return []
        return [reason or ACCEPTED for reason in self.values["reason"]]

    @cached_property
    def scores(self) -> list[str]:
        """The score columns that have numbers."""
        return [name for name in SCORE_COLUMNS if any(value is not None for value in self.values.get(name, []))]


def open_pairs(source: str) -> Pairs:
    """Opens a run, a folder or a file of parquet, a pattern or a hub dataset. ValueError with the way out."""
    location = locate(source, way_out=WAY_OUT)
    if location.kind == "hub":
        rows = enumerate(stream_rows(location, limit=HUB_ROWS, way_out=WAY_OUT, split="train"), start=1)
        return _read(
            ListTable([Row(values, f"{location.word} row {number}") for number, values in rows]), location.word
        )
    if location.kind == "path" and (location.path / "pairs").is_dir():
        files = RunFolder(location.path).shards("pairs")  # rejected pairs too, if the run kept them
    else:
        files = data_files(location)
    if not files:
        return _read(open_table(location), location.word)
    return _read_files(tuple(files), tuple(file.stat().st_mtime_ns for file in files), location.word)


@lru_cache(maxsize=2)
def _read_files(files: tuple[Path, ...], written_at: tuple[int, ...], word: str) -> Pairs:
    """Reads files once, until one is written again: every visit of the page opens the same run."""
    return _read(ParquetTable(files), word)


def _read(table: Table, word: str) -> Pairs:
    names = {ours: find_column(ours, table.names) for ours in (*TEXTS, *VERDICT, *SCORE_COLUMNS)}
    present = {ours: theirs for ours, theirs in names.items() if theirs}
    values: dict[str, list[Any]] = {ours: [] for ours in present}
    for row in table.read(list(present.values())):
        for ours, theirs in present.items():
            values[ours].append(row.values.get(theirs) if ours in SCORE_COLUMNS else row.text(theirs))
    return Pairs(table, image_columns(table.names, where=word), values)


def count_choices(values: Sequence[str]) -> list[tuple[str, str]]:
    """Lists the values of a column, most frequent first, each with a label that counts it and explains a reason."""
    return [
        (f"{REASONS.get(value, value)} ({count})", value) for value, count in Counter(values).most_common() if value
    ]


def find(
    pairs: Pairs,
    *,
    edit_types: Sequence[str] | None = None,
    verdicts: Sequence[str] | None = None,
    score: str | None = None,
    low: float | None = None,
    high: float | None = None,
    words: str | None = None,
) -> list[int]:
    """Returns the numbers of the rows that match all criteria, in order; an empty criterion matches every row.

    `verdicts` are `accepted` or reasons, `low` and `high` bound the score, and `words` are looked for in all texts.
    """
    values = pairs.values
    rows: Iterable[int] = range(len(pairs))
    if edit_types and "edit_type" in values:
        rows = [row for row in rows if values["edit_type"][row] in edit_types]
    if verdicts and pairs.verdicts:
        rows = [row for row in rows if pairs.verdicts[row] in verdicts]
    if score is not None and score in values and (low is not None or high is not None):
        least, most = -inf if low is None else low - ROUNDING, inf if high is None else high + ROUNDING
        rows = [row for row in rows if values[score][row] is not None and least <= values[score][row] <= most]
    if words := (words or "").strip().lower():
        texts = [values[name] for name in TEXTS if name in values]
        rows = [row for row in rows if any(words in text[row].lower() for text in texts)]
    return list(rows)


def read_sides(pairs: Pairs, number: int) -> tuple[Image.Image, Image.Image]:
    """Reads the original and the edited picture of a row. ValueError names the row if one does not decode."""
    row = pairs.pictures.row(number, pairs.sides)
    try:
        original, edited = (open_picture(row.picture(name) or b"") for name in pairs.sides)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from error
    return original, edited


def side_by_side(pairs: Pairs, number: int) -> tuple[Image.Image, str]:
    """Draws a pair as one picture, the original on the left, reduced to a card's height; returns it with a caption.

    A pair that does not decode is a blank card that says so.
    """
    try:
        original, edited = read_sides(pairs, number)
    except ValueError as error:
        return Image.new("RGB", (2 * CARD_HEIGHT, CARD_HEIGHT), "white"), str(error)
    both = Image.new("RGB", (original.width + GAP + edited.width, max(original.height, edited.height)), "white")
    both.paste(original, (0, 0))
    both.paste(edited, (original.width + GAP, 0))
    both.thumbnail((4 * CARD_HEIGHT, CARD_HEIGHT))
    facts = describe(pairs, number)
    parts = (facts.get(title) for title in (TEXTS["edit_prompt"], TEXTS["edit_type"], "Verdict"))
    return both, " · ".join(filter(None, parts))


def describe(pairs: Pairs, number: int) -> dict[str, str]:
    """Returns the texts, the verdict and the scores that a row has, by what to call them, and its place."""
    facts = {title: pairs.values[name][number] for name, title in TEXTS.items() if name in pairs.values}
    if pairs.verdicts:
        facts["Verdict"] = REASONS.get(pairs.verdicts[number], pairs.verdicts[number])
    scores = {SCORES[SCORE_COLUMNS[name]].meaning: pairs.values[name][number] for name in pairs.scores}
    facts |= {title: f"{value:.3f}" for title, value in scores.items() if value is not None}
    facts["Place"] = pairs.pictures.row(number, pairs.sides).where
    return {title: text for title, text in facts.items() if text}


def write_once(folder: Path, picture: Image.Image) -> str:
    """Writes a picture as PNG, once: a file that is rewritten while it is served arrives broken. Returns its path."""
    path = folder / f"{content_hash(picture.size, picture.tobytes().hex())}.png"
    if not path.exists():
        write_atomic(path, lambda file: picture.save(file, "PNG"))
    return str(path)


def sample_edits(model: str, folder: Path) -> list[tuple[str, str]]:
    """Writes pictures to try an editor on: held-out ones of its run, with their instructions; none if it has no run."""
    run = Path(model).parent
    try:
        location = locate(read_run_data(run) or run)
        table = ParquetTable(held_out_files(location) or data_files(location))
        original, _ = image_columns(table.names, where=location.word)
        instruction = find_column("edit_prompt", table.names) or ""
        num_rows = min(len(table), SAMPLED_ROWS)
        rows = [
            table.row(number, (original, instruction)) for number in range(0, num_rows, max(1, num_rows // NUM_SAMPLES))
        ]
        pictures = [open_picture(row.picture(original) or b"") for row in rows[:NUM_SAMPLES]]
    except (OSError, ValueError):
        return []
    return [(write_once(folder, picture), row.text(instruction)) for picture, row in zip(pictures, rows, strict=False)]
