"""The original's delimiter format, and which triplets are fit for rendering.

A prompt is `caption\\n##\\n`, its answer `instruction\\n%%\\nedited caption\\nEND` (original repository, stage 1).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Literal

from ip2p.records import EditTriplet

PROMPT_END = "\n##\n"
SEPARATOR = "\n%%\n"
STOP = "\nEND"

Reason = Literal["", "unparsable", "no_op", "too_long", "duplicate"]
REASONS: tuple[Reason, ...] = ("unparsable", "no_op", "too_long", "duplicate")


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


def is_no_op(original_prompt: str, edited_prompt: str) -> bool:
    """Says whether both captions are the same but for case and the final mark."""
    return _bare(original_prompt) == _bare(edited_prompt)


def _bare(text: str) -> str:
    return text.strip().strip(".!?").lower()


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
