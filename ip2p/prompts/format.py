"""How answers are read, in the original's delimiter format and as JSON, and what any triplet must satisfy.

A prompt is `caption\\n##\\n`, its answer `instruction\\n%%\\nedited caption\\nEND` (original repository, stage 1).
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable
from typing import Literal, get_args

from ip2p.records import EditTriplet

PROMPT_END = "\n##\n"
SEPARATOR = "\n%%\n"
STOP = "\nEND"

Reason = Literal[
    "",
    "unparsable",
    "wrong_types",
    "refused",
    "no_op",
    "too_long",
    "language",
    "banned",
    "moderated",
    "disagreement",
    "duplicate",
    "near_duplicate",
]
REASONS: tuple[Reason, ...] = tuple(reason for reason in get_args(Reason) if reason)
JSON_FIELDS = ("edit_type", "edit_prompt", "edited_prompt")
"""Keys of a JSON answer; all of them are there, no other is, and each holds a text of one line."""
FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL)


def format_prompt(caption: str) -> str:
    """What the language model is given."""
    return caption + PROMPT_END


def format_answer(edit_prompt: str, edited_prompt: str) -> str:
    """What a well-behaved language model answers; the inverse of `parse_answer`."""
    return edit_prompt + SEPARATOR + edited_prompt + STOP


def parse_answer(text: str) -> tuple[str, str] | None:
    """(instruction, edited caption), or None where the answer is not two single lines and a stop."""
    answer, stop, _ = text.partition(STOP)
    parts = [part.strip() for part in answer.split(SEPARATOR)]
    whole = bool(stop) and len(parts) == 2 and all(part and "\n" not in part for part in parts)
    return (parts[0], parts[1]) if whole else None


def format_json(edit_type: str, edit_prompt: str, edited_prompt: str) -> str:
    """The answer that chat models are asked for; the inverse of `parse_json`."""
    values = zip(JSON_FIELDS, (edit_type, edit_prompt, edited_prompt), strict=True)
    return json.dumps(dict(values), ensure_ascii=False)


def parse_json(text: str, edit_types: Collection[str]) -> tuple[str, str, str] | Reason:
    """(edit type, instruction, edited caption) of one JSON object, bare or fenced; else what is wrong with it."""
    bare = text.strip()
    fenced = FENCE.match(bare)
    try:
        found = json.loads(fenced[1] if fenced else bare)
    except (ValueError, RecursionError):
        return "unparsable"
    if not isinstance(found, dict) or set(found) != set(JSON_FIELDS):
        return "unparsable"
    values = [value.strip() if isinstance(value, str) else "" for value in map(found.get, JSON_FIELDS)]
    if values[0] not in edit_types or not all(value and "\n" not in value for value in values):
        return "wrong_types"
    return values[0], values[1], values[2]


def is_no_op(original_prompt: str, edited_prompt: str) -> bool:
    """Says whether both captions are the same but for case, spaces, marks and the form of letters."""
    return _bare(original_prompt) == _bare(edited_prompt)


def _bare(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]|_", " ", plain).split()) or " ".join(plain.split())


def judge_triplet(triplet: EditTriplet, *, fits: Callable[[str], bool], seen: Iterable[str]) -> Reason:
    """The reason against a triplet, or nothing; `seen` holds the ids that were kept before."""
    if is_no_op(triplet.original_prompt, triplet.edited_prompt):
        return "no_op"
    if not all(map(fits, (triplet.original_prompt, triplet.edit_prompt, triplet.edited_prompt))):
        return "too_long"
    return "duplicate" if triplet.id in seen else ""


def name_edit_type(edit_prompt: str, rules: tuple[tuple[str, str], ...]) -> str:
    """The type of the first rule that is found in the lower-cased instruction, else `other`."""
    text = edit_prompt.lower()
    return next((name for pattern, name in rules if _compiled(pattern).search(text)), "other")


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"prompts.edit_type_rules takes regular expressions, got {pattern!r} ({error}). Escape special characters."
        ) from None
