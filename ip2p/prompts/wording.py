"""Puts the change between two captions into words: an instruction for pictures that exist already.

An OpenAI-compatible server is asked, or a chat model in this process. Every answer is in a journal before it is used,
so that none is asked for twice.
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
from ip2p.prompts.backends import check_backend, open_chat
from ip2p.prompts.format import FENCE
from ip2p.records import content_hash, hash_to_seed, hash_to_unit
from ip2p.sources.content import Source, content_of
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


def ask_model(config: PromptsConfig, journal: Path) -> Word:
    """Returns a function that asks the configured server or chat model.

    ValueError if the backend is of another kind, or its model is not there.
    """
    if config.backend not in ("chat", "server"):
        raise ValueError(
            f"prompts.backend {config.backend} writes no instruction between two captions. Take --prompts.backend chat "
            "or server, or a domain that words edits."
        )
    check_backend(config)
    ask = _ask_server if config.backend == "server" else _ask_chat_model
    return partial(_word, config, partial(ask, config, Journal(journal)))


Ask = Callable[[Sequence[Change], Callable[[int], object]], list[str]]
"""Returns the answers about changes, in order; calls the function with the number of new ones."""


def _word(config: PromptsConfig, ask: Ask, changes: Sequence[Change]) -> list[Wording | None]:
    with tqdm(total=len(changes), desc="wording", disable=None) as bar:
        answers = ask(changes, bar.update)
    edit_types = [name for name, _ in config.edit_types]
    return [read_wording(answer, edit_types) for answer in answers]


def _ask_server(
    config: PromptsConfig, journal: Journal, changes: Sequence[Change], on_answer: Callable[[int], object]
) -> list[str]:
    def ask(change: Change) -> str:
        body = _body(config, change)
        reply = journal.once(_key_of(body), partial(client.ask, body))
        return str(reply.get("text", ""))

    with closing(ChatClient(config.server)) as client:
        return client.ask_together(changes, ask, on_answer)


def _ask_chat_model(
    config: PromptsConfig, journal: Journal, changes: Sequence[Change], on_answer: Callable[[int], object]
) -> list[str]:
    """Asks about a batch at a time; the content of the model is part of each question."""
    content = content_of(Source("prompts.model", config.model, config.revision))
    further = {"content": content, "dtype": config.dtype, "top_p": config.top_p}
    bodies = [_body(config, change) | further for change in changes]
    keys = [_key_of(body) for body in bodies]
    new = list({key: body for key, body in zip(keys, bodies, strict=True) if journal.get(key) is None}.items())
    on_answer(len(keys) - len(new))
    for start in range(0, len(new), config.batch_size):
        batch = new[start : start + config.batch_size]
        talks, draws = [body["messages"] for _, body in batch], [(body["seed"],) for _, body in batch]
        for (key, _), text in zip(batch, open_chat(config).converse(talks, draws, on_answer), strict=True):
            journal.add(key, {"text": text})
    return [str((journal.get(key) or {}).get("text", "")) for key in keys]


def _body(config: PromptsConfig, change: Change) -> Record:
    return {
        "model": config.model,
        "messages": messages_for(config, change),
        "temperature": config.temperature,
        "max_tokens": config.max_new_tokens,
        "seed": hash_to_seed(config.seed, change.before, change.after, *change.steps) % 2**31,
    }


def _key_of(body: Record) -> str:
    return content_hash(json.dumps(body, sort_keys=True))


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
