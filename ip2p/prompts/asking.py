"""What is asked about a caption: the requests, their answers, and the words that a chat model is asked in.

The edit type and the examples are drawn by a hash of seed, caption and attempt, so that the same config asks the same.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ip2p.config import PromptsConfig
from ip2p.prompts.captions import read_triplet_lines
from ip2p.prompts.format import Reason, format_json, name_edit_type, parse_answer, parse_json
from ip2p.records import EditTriplet, hash_to_unit

Message = dict[str, str]
"""`role` and `content`, as chat templates and servers take them."""

SYSTEM = """\
You write training data for an image editor that follows instructions. You are given the caption of a picture and an \
edit type. Think of one edit of that type that would make an interesting, plausible picture, and answer with one JSON \
object and nothing else:
{"edit_type": ..., "edit_prompt": ..., "edited_prompt": ...}
edit_prompt is the instruction, as a person would say it, in at most twelve words. edited_prompt is the caption of the \
edited picture: the given caption, word for word, with only what the edit changes put differently.
The edit must be visible. Do not move the camera, count things or swap places, and name no living person. Where the \
type does not fit the caption, take the one of these that fits best: """

REPAIR = {
    "unparsable": "That is not one JSON object with exactly the keys edit_type, edit_prompt and edited_prompt.",
    "wrong_types": "Each value must be a text of one line that is not empty, and edit_type one of the types named.",
}


@dataclass(frozen=True, slots=True)
class Request:
    """Asks for one answer about a caption."""

    caption: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Holds what came back: the text that counts, those that had to be repaired before it, and why there is none."""

    text: str
    earlier: tuple[str, ...] = ()
    reason: Reason = ""


class Backend(Protocol):
    """Writes about captions."""

    def answer(self, requests: Sequence[Request], *, on_answer: Callable[[int], object]) -> list[Answer]:
        """Returns one answer per request, in order; calls `on_answer` with the number of new ones."""
        ...


def read_answer(config: PromptsConfig, request: Request, answer: Answer, source: str) -> EditTriplet | Reason:
    """Makes a triplet of a caption and its answer, or returns why that fails."""
    if answer.reason:
        return answer.reason
    found = _parse(config, answer.text)
    if isinstance(found, str):
        return found
    edit_type, edit_prompt, edited_prompt = found
    return EditTriplet(
        original_prompt=request.caption,
        edit_prompt=edit_prompt,
        edited_prompt=edited_prompt,
        edit_type=edit_type,
        source=source,
    )


def _parse(config: PromptsConfig, text: str) -> tuple[str, str, str] | Reason:
    if config.backend in ("chat", "server"):
        return parse_json(text, [name for name, _ in config.edit_types])
    parts = parse_answer(text)
    return (name_edit_type(parts[0], config.edit_type_rules), *parts) if parts else "unparsable"


def draw_edit_type(config: PromptsConfig, request: Request) -> str:
    """Draws by weight; attempts at a caption take different types as long as there are any (Efraimidis, Spirakis)."""
    weights = {name: weight for name, weight in config.edit_types if weight > 0}

    def key(name: str) -> float:
        return math.pow(hash_to_unit("edit type", config.seed, request.caption, name), 1 / weights[name])

    ordered = sorted(weights, key=key, reverse=True)
    return ordered[request.attempt % len(ordered)]


def draw_examples(config: PromptsConfig, request: Request, edit_type: str) -> list[EditTriplet]:
    """Draws examples by hash, those of the edit type first; never one about the caption itself."""

    def key(example: EditTriplet) -> tuple[bool, float]:
        drawn = hash_to_unit("example", config.seed, request.caption, request.attempt, example.id)
        return example.edit_type != edit_type, drawn

    others = [each for each in read_examples(config.examples) if each.original_prompt != request.caption]
    return sorted(others, key=key)[: config.num_examples]


def read_examples(source: str) -> tuple[EditTriplet, ...]:
    """Reads the triplets of a file, or the shipped ones. ValueError if one is malformed."""
    from ip2p.presets import data_folder

    return _read_examples(source or str(data_folder() / "prompts" / "photo.jsonl"))


@functools.lru_cache(maxsize=4)
def _read_examples(source: str) -> tuple[EditTriplet, ...]:
    try:
        lines = read_triplet_lines(source)
    except ValueError as error:
        raise ValueError(f"prompts.examples {error}") from error
    broken = [line for line in lines if line.triplet is None]
    if broken:
        raise ValueError(f"prompts.examples {source} line {broken[0].number} is not a triplet: {broken[0].problem}.")
    return tuple(line.triplet for line in lines if line.triplet)


def messages_for(config: PromptsConfig, request: Request) -> list[Message]:
    """Writes the conversation that ends with the caption: instructions, examples, question."""
    edit_type = draw_edit_type(config, request)
    types = ", ".join(name for name, weight in config.edit_types if weight > 0)
    messages = [_message("system", f"{SYSTEM}{types}.")]
    for example in draw_examples(config, request, edit_type):
        shown = example.edit_type or edit_type
        messages.append(_message("user", _question(example.original_prompt, shown)))
        messages.append(_message("assistant", format_json(shown, example.edit_prompt, example.edited_prompt)))
    return [*messages, _message("user", _question(request.caption, edit_type))]


def repair_messages(messages: Sequence[Message], text: str, reason: Reason) -> list[Message]:
    """Continues the conversation with what was wrong."""
    wrong = f"{REPAIR[reason]} Answer again with the JSON object alone."
    return [*messages, _message("assistant", text), _message("user", wrong)]


def needs_repair(config: PromptsConfig, text: str) -> Reason:
    """Returns why an answer should be asked for again; empty if it should not."""
    found = _parse(config, text)
    return found if isinstance(found, str) and found in REPAIR else ""


def _question(caption: str, edit_type: str) -> str:
    return f"Caption: {json.dumps(caption, ensure_ascii=False)}\nEdit type: {edit_type}"


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
