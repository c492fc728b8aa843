"""Puts the change between two captions into words: an instruction for pictures that exist already.

An OpenAI-compatible server is asked. Every answer is in a journal before it is used, so that none is asked for twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from ip2p.chat_client import ChatClient
from ip2p.config import PromptsConfig
from ip2p.prompts.asking import Message, message, read_examples
from ip2p.prompts.backends import check_server
from ip2p.prompts.format import FENCE
from ip2p.records import content_hash, hash_to_seed, hash_to_unit
from ip2p.store.journal import Journal, Record

FIELDS = ("edit_type", "edit_prompt")
SYSTEM = """\
You write training data for an image editor that follows instructions. You are given the caption of a picture and the \
caption of the same picture after an edit. Answer with one JSON object and nothing else:
{"edit_type": ..., "edit_prompt": ...}
edit_prompt is the instruction that leads from the first picture to the second, as a person who sees only the first \
would say it, in at most twelve words. Name what differs between the captions, and nothing else. edit_type is the one \
of these that fits best: """


@dataclass(frozen=True, slots=True)
class Change:
    """The captions of a picture before and after an edit."""

    before: str
    after: str
    steps: tuple[str, ...] = ()
    """Instructions that lead there one after another, to be put into one."""


@dataclass(frozen=True, slots=True)
class Wording:
    """An instruction and its type."""

    edit_type: str
    edit_prompt: str


Word = Callable[[Sequence[Change]], list[Wording | None]]
"""Puts changes into words, in order; None if there are none."""


class WordsEdits(Protocol):
    """A domain that puts edits into words by its own rules."""

    def word_edit(self, original_prompt: str, edited_prompt: str, seed: int) -> tuple[str, str] | None:
        """Returns the type and the instruction of the edit between two captions; None if there is no such edit."""
        ...


def word_by(domain: WordsEdits, seed: int) -> Word:
    """Returns a function that asks a domain."""

    def word(changes: Sequence[Change]) -> list[Wording | None]:
        worded = (domain.word_edit(change.before, change.after, seed) for change in changes)
        return [Wording(*each) if each else None for each in worded]

    return word


def ask_server(config: PromptsConfig, journal: Path) -> Word:
    """Returns a function that asks the configured server. ValueError if the config names none."""
    if config.backend != "server":
        raise ValueError(
            f"prompts.backend {config.backend} writes no instruction between two captions. Take "
            "--prompts.backend server, or a domain that words edits."
        )
    check_server(config)
    return partial(_word, config, Journal(journal))


def _word(config: PromptsConfig, journal: Journal, changes: Sequence[Change]) -> list[Wording | None]:
    with closing(ChatClient(config.server)) as client, tqdm(total=len(changes), desc="wording", disable=None) as bar:
        return client.ask_together(changes, partial(_ask, config, journal, client), bar.update)


def _ask(config: PromptsConfig, journal: Journal, client: ChatClient, change: Change) -> Wording | None:
    body: Record = {
        "model": config.model,
        "messages": messages_for(config, change),
        "temperature": config.temperature,
        "max_tokens": config.max_new_tokens,
        "seed": hash_to_seed(config.seed, change.before, change.after, *change.steps) % 2**31,
    }
    key = content_hash(json.dumps(body, sort_keys=True))
    reply = journal.once(key, partial(client.ask, body))
    return read_wording(str(reply.get("text", "")), [name for name, _ in config.edit_types])


def messages_for(config: PromptsConfig, change: Change) -> list[Message]:
    """Writes the conversation that ends with the two captions: instructions, examples, question."""
    types = ", ".join(name for name, weight in config.edit_types if weight > 0)
    messages = [message("system", f"{SYSTEM}{types}.")]
    examples = read_examples(config.examples) if config.num_examples else ()
    ordered = sorted(examples, key=lambda each: hash_to_unit("wording", config.seed, change.before, each.id))
    for each in ordered[: config.num_examples]:
        answer = dict(zip(FIELDS, (each.edit_type, each.edit_prompt), strict=True))
        messages.append(message("user", _question(Change(each.original_prompt, each.edited_prompt))))
        messages.append(message("assistant", json.dumps(answer, ensure_ascii=False)))
    return [*messages, message("user", _question(change))]


def read_wording(text: str, edit_types: Sequence[str]) -> Wording | None:
    """Reads an answer; None if it is not one object with a known type and an instruction of one line."""
    fenced = FENCE.match(text.strip())
    try:
        answer = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None
    values = [answer.get(name) for name in FIELDS] if isinstance(answer, dict) else []
    words = [value.strip() for value in values if isinstance(value, str)]
    if len(words) != len(FIELDS) or words[0] not in edit_types or not words[1] or "\n" in words[1]:
        return None
    return Wording(*words)


def _question(change: Change) -> str:
    before, after = (json.dumps(caption, ensure_ascii=False) for caption in (change.before, change.after))
    question = f"Caption: {before}\nEdit type: the one that fits\nCaption after the edit: {after}"
    if not change.steps:
        return question
    steps = json.dumps(change.steps, ensure_ascii=False)
    return f"{question}\nEdits that were made one after another, to be asked for in one instruction: {steps}"
