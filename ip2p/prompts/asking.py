"""What is asked about a caption: requests, their answers, and the conversation with a chat model.

The edit type and the examples are drawn by a hash of seed, caption and attempt, so the same config asks the same.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ip2p.config import PromptsConfig
from ip2p.presets import data_folder
from ip2p.prompts.captions import read_triplet_lines
from ip2p.prompts.format import Reason, format_json, parse_reply
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
    """Holds what came back: the last text, the malformed ones before it, and the reason if there is no answer."""

    text: str
    earlier: tuple[str, ...] = ()
    reason: Reason = ""


class Backend(Protocol):
    """Writes about captions."""

    def answer(self, requests: Sequence[Request], *, on_answer: Callable[[int], object]) -> list[Answer]:
        """Returns one answer per request, in order; calls `on_answer` with the number of new ones."""
        ...


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

    examples = read_examples(config.examples)
    others = [example for example in examples if example.original_prompt != request.caption]
    return sorted(others, key=key)[: config.num_examples]


@functools.lru_cache(maxsize=4)
def read_examples(source: str) -> tuple[EditTriplet, ...]:
    """Reads the triplets of a file, or the shipped ones. ValueError if one is malformed."""
    source = source or str(data_folder() / "prompts" / "photo.jsonl")
    try:
        lines = read_triplet_lines(source)
    except ValueError as error:
        raise ValueError(f"prompts.examples {error}") from error
    for line in lines:
        if line.triplet is None:
            raise ValueError(f"prompts.examples {source} line {line.number} is not a triplet: {line.problem}.")
    return tuple(line.triplet for line in lines if line.triplet)


def messages_for(config: PromptsConfig, request: Request) -> list[Message]:
    """Writes the conversation that ends with the caption: instructions, examples, question."""
    edit_type = draw_edit_type(config, request)
    types = ", ".join(name for name, weight in config.edit_types if weight > 0)
    messages = [_message("system", f"{SYSTEM}{types}.")]
    for example in draw_examples(config, request, edit_type):
        type_shown = example.edit_type or edit_type
        messages.append(_message("user", _question(example.original_prompt, type_shown)))
        messages.append(_message("assistant", format_json(type_shown, example.edit_prompt, example.edited_prompt)))
    return [*messages, _message("user", _question(request.caption, edit_type))]


def repair_messages(messages: Sequence[Message], text: str, reason: Reason) -> list[Message]:
    """Continues the conversation with what is wrong with the answer."""
    complaint = f"{REPAIR[reason]} Answer again with the JSON object alone."
    return [*messages, _message("assistant", text), _message("user", complaint)]


def needs_repair(config: PromptsConfig, text: str) -> Reason:
    """Returns why an answer should be asked for again; empty if it should not."""
    parsed = parse_reply(config, text)
    return parsed if isinstance(parsed, str) and parsed in REPAIR else ""


def _question(caption: str, edit_type: str) -> str:
    return f"Caption: {json.dumps(caption, ensure_ascii=False)}\nEdit type: {edit_type}"


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
