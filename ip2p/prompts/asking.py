"""What is asked about a caption: requests, their answers, and the conversation with a chat model.

The edit type and the examples are drawn by a hash of seed, caption and attempt, so the same config asks the same.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ip2p.config import PromptsConfig
from ip2p.presets import data_folder
from ip2p.prompts.captions import read_triplet_lines
from ip2p.prompts.format import JSON_FIELDS, Reason, format_json, parse_look, parse_reply
from ip2p.records import EditTriplet, hash_to_unit

Message = dict[str, Any]
"""`role` and `content`, a text or parts, as chat templates and servers take them."""

SYSTEM = """\
You write training data for an image editor that follows instructions. You are given the caption of a picture and an \
edit type. Think of one edit of that type that would make an interesting, plausible picture, and answer with one JSON \
object and nothing else:
{"edit_type": ..., "edit_prompt": ..., "edited_prompt": ...}
edit_prompt is the instruction, as a person would say it, in at most twelve words. edited_prompt is the caption of the \
edited picture: the given caption, word for word, with only what the edit changes put differently.
The edit must be visible. Do not move the camera, count things or swap places, and name no living person. Where the \
type does not fit the caption, take the one of these that fits best: """

LOOK = """\
You write training data for an image editor that follows instructions. You are shown a picture and given an edit type. \
Think of one edit of that type that would make an interesting, plausible picture of what you see, and answer with one \
JSON object and nothing else:
{"edit_type": ..., "original_prompt": ..., "edit_prompt": ..., "edited_prompt": ...}
original_prompt is a caption of the picture in at most twenty-five words, which names what the edit is about. \
edit_prompt is the instruction, as a person would say it, in at most twelve words. edited_prompt is the caption of the \
edited picture: original_prompt, word for word, with only what the edit changes put differently.
Write only of what can be seen. The edit must be visible. Do not move the camera, count things or swap places, and \
name no living person. Where the type does not fit the picture, take the one of these that fits best: """

REPAIR = {
    "unparsable": "That is not one JSON object with exactly the keys {keys}.",
    "wrong_types": "Each value must be a text of one line that is not empty, and edit_type one of the types named.",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be written about: a caption, a real picture with its caption, or a picture alone."""

    caption: str
    picture: str = ""
    """Hash of the stored picture."""
    reason: Reason = ""
    """Why nothing can be asked about it."""

    @property
    def identity(self) -> str | list[str]:
        """Returns what stands for it in fingerprints."""
        return [self.caption, self.picture] if self.picture else self.caption


@dataclass(frozen=True, slots=True)
class Request:
    """Asks for one answer about a caption or a picture."""

    caption: str
    attempt: int
    picture: str = ""
    """Hash of the stored picture that the edit is for."""

    @property
    def topic(self) -> str:
        """Returns what draws are hashed from: pictures with one caption are written about independently."""
        return f"{self.picture} {self.caption}" if self.picture else self.caption

    @property
    def is_shown(self) -> bool:
        """Returns whether the model looks at the picture, since there is no caption."""
        return bool(self.picture) and not self.caption


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
        return math.pow(hash_to_unit("edit type", config.seed, request.topic, name), 1 / weights[name])

    ordered = sorted(weights, key=key, reverse=True)
    return ordered[request.attempt % len(ordered)]


def draw_examples(config: PromptsConfig, request: Request, edit_type: str) -> list[EditTriplet]:
    """Draws examples by hash, those of the edit type first; never one about the caption itself."""

    def key(example: EditTriplet) -> tuple[bool, float]:
        drawn = hash_to_unit("example", config.seed, request.topic, request.attempt, example.id)
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
    messages = [message("system", f"{SYSTEM}{types}.")]
    for example in draw_examples(config, request, edit_type):
        type_shown = example.edit_type or edit_type
        messages.append(message("user", _question(example.original_prompt, type_shown)))
        messages.append(message("assistant", format_json(type_shown, example.edit_prompt, example.edited_prompt)))
    return [*messages, message("user", _question(request.caption, edit_type))]


def messages_about(config: PromptsConfig, request: Request, shown: Mapping[str, Any]) -> list[Message]:
    """Writes the conversation about a picture that the model sees; `shown` is the picture as a part of a message."""
    types = ", ".join(name for name, weight in config.edit_types if weight > 0)
    question = {"type": "text", "text": f"Edit type: {draw_edit_type(config, request)}"}
    return [message("system", f"{LOOK}{types}."), {"role": "user", "content": [dict(shown), question]}]


def repair_messages(
    messages: Sequence[Message], text: str, reason: Reason, fields: Sequence[str] = JSON_FIELDS
) -> list[Message]:
    """Continues the conversation with what is wrong with the answer."""
    keys = f"{', '.join(fields[:-1])} and {fields[-1]}"
    complaint = f"{REPAIR[reason].format(keys=keys)} Answer again with the JSON object alone."
    return [*messages, message("assistant", text), message("user", complaint)]


def needs_repair(config: PromptsConfig, text: str, *, is_shown: bool = False) -> Reason:
    """Returns why an answer should be asked for again; empty if it should not."""
    parsed = parse_look(config, text) if is_shown else parse_reply(config, text)
    return parsed if isinstance(parsed, str) and parsed in REPAIR else ""


def _question(caption: str, edit_type: str) -> str:
    return f"Caption: {json.dumps(caption, ensure_ascii=False)}\nEdit type: {edit_type}"


def message(role: str, content: str) -> Message:
    """Returns a message of a conversation."""
    return {"role": role, "content": content}
