"""The two forms of an answer, the original's with delimiters and JSON for chat models: how each is written and read.

A prompt is `caption\\n##\\n`, its answer `instruction\\n%%\\nedited caption\\nEND` (original repository, stage 1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Literal

from ip2p.config import PromptsConfig

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
    "other_reference",
    "duplicate",
    "near_duplicate",
    "unreadable",
]
REASONS: dict[str, str] = {
    "unparsable": "not parsable",
    "no_op": "no change",
    "too_long": "too long",
    "duplicate": "duplicate",
    "near_duplicate": "close to an earlier one",
    "wrong_types": "fields of the wrong type",
    "refused": "refused by the server",
    "language": "not English",
    "banned": "banned word",
    "moderated": "refused by moderation",
    "disagreement": "caption and instruction disagree",
    "other_reference": "the instruction names something else than the caption changes",
    "unreadable": "picture that cannot be read",
}
"""The reasons against a triplet, and what readers are told."""
Parts = tuple[str, str, str]
"""Edit type, instruction and edited caption."""
JSON_FIELDS = ("edit_type", "edit_prompt", "edited_prompt")
"""Keys of a JSON answer: it has all of them and no other, and each holds a text of one line."""
LOOK_FIELDS = ("edit_type", "original_prompt", "edit_prompt", "edited_prompt")
"""The same for an answer about a picture that was shown."""
FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL)


def format_prompt(caption: str) -> str:
    """Writes the prompt of a language model that was fine-tuned in the original's format."""
    return caption + PROMPT_END


def format_answer(edit_prompt: str, edited_prompt: str) -> str:
    """Writes an answer in the original's format; the inverse of `parse_answer`."""
    return edit_prompt + SEPARATOR + edited_prompt + STOP


def parse_answer(text: str) -> tuple[str, str] | None:
    """Returns (instruction, edited caption), or None if the answer is not two single lines and a stop."""
    answer, stop, _ = text.partition(STOP)
    parts = [part.strip() for part in answer.split(SEPARATOR)]
    is_whole = bool(stop) and len(parts) == 2 and all(part and "\n" not in part for part in parts)
    return (parts[0], parts[1]) if is_whole else None


def format_json(edit_type: str, edit_prompt: str, edited_prompt: str) -> str:
    """Writes the answer that chat models are asked for; the inverse of `parse_json`."""
    values = zip(JSON_FIELDS, (edit_type, edit_prompt, edited_prompt), strict=True)
    return json.dumps(dict(values), ensure_ascii=False)


def parse_json(text: str, edit_types: Collection[str]) -> Parts | Reason:
    """Reads one JSON object, bare or fenced, or returns what is wrong with it."""
    values = _read_fields(text, JSON_FIELDS, edit_types)
    return values if isinstance(values, str) else (values[0], values[1], values[2])


def parse_look(config: PromptsConfig, text: str) -> tuple[str, str, str, str] | Reason:
    """Reads the answer about a picture: its caption, then the parts as for captions; or what is wrong with it."""
    values = _read_fields(text, LOOK_FIELDS, [name for name, _ in config.edit_types])
    return values if isinstance(values, str) else (values[1], values[0], values[2], values[3])


def _read_fields(text: str, names: Sequence[str], edit_types: Collection[str]) -> list[str] | Reason:
    """Reads the texts of one JSON object, the edit type first."""
    bare = text.strip()
    fenced = FENCE.match(bare)
    try:
        answer = json.loads(fenced[1] if fenced else bare)
    except (ValueError, RecursionError):
        return "unparsable"
    if not isinstance(answer, dict) or set(answer) != set(names):
        return "unparsable"
    values = [value.strip() if isinstance(value, str) else "" for value in map(answer.get, names)]
    if values[0] not in edit_types or not all(value and "\n" not in value for value in values):
        return "wrong_types"
    return values


def parse_reply(config: PromptsConfig, text: str) -> Parts | Reason:
    """Reads an answer in the form that the backend is asked for, or returns what is wrong with it."""
    if config.backend in ("chat", "server"):
        return parse_json(text, [name for name, _ in config.edit_types])
    parts = parse_answer(text)
    return (name_edit_type(parts[0], config.edit_type_rules), *parts) if parts else "unparsable"


def name_edit_type(edit_prompt: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Returns the type of the first rule that matches in the lower-cased instruction, else `other`."""
    for pattern, name in rules:
        try:
            if re.search(pattern, edit_prompt.lower()):
                return name
        except re.error as error:
            raise ValueError(
                f"prompts.edit_type_rules takes regular expressions, got {pattern!r} ({error}). "
                "Escape special characters."
            ) from None
    return "other"
