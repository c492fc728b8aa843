"""The `server` backend: asks an OpenAI-compatible endpoint, many requests at once, with retries on transient errors.

Every answer is in the journal before it is used, so a kill costs only the requests in flight and no answer is paid for
twice. A request that the server refuses for its content is answered too: with the refusal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial

from ip2p.chat_client import ChatClient, picture_part
from ip2p.config import PromptsConfig
from ip2p.images import format_of
from ip2p.prompts.asking import (
    Answer,
    Message,
    Request,
    messages_about,
    messages_for,
    needs_repair,
    repair_messages,
)
from ip2p.prompts.format import JSON_FIELDS, LOOK_FIELDS
from ip2p.records import content_hash, hash_to_seed
from ip2p.store.journal import Journal, Record


class ServerBackend:
    """Sends a shard's requests together; the config limits how many are open at a time in the whole process."""

    def __init__(self, config: PromptsConfig, journal: Journal, pictures: Mapping[str, bytes]) -> None:
        self.config, self.journal, self.pictures = config, journal, pictures

    def answer(self, requests: Sequence[Request], *, on_answer: Callable[[int], object]) -> list[Answer]:
        """Returns one answer per request, in order. RuntimeError if the server stays away; earlier answers are kept."""
        with closing(ChatClient(self.config.server)) as client:
            answers = client.ask_together(requests, partial(self._converse, client), on_answer)
        if len(answers) > 1 and all(answer.reason == "refused" for answer in answers):
            self.journal.remove()
            raise ValueError(
                f"{self.config.server.base_url} refused every request: {answers[0].text}. Check prompts.model, "
                "prompts.max_new_tokens and prompts.server.response_format."
            )
        return answers

    def _converse(self, client: ChatClient, request: Request) -> Answer:
        talk, earlier = self._open(request), list[str]()
        fields = LOOK_FIELDS if request.is_shown else JSON_FIELDS
        while True:
            reply = self._ask(client, request, talk)
            if "refused" in reply:
                return Answer(str(reply["refused"]), tuple(earlier), "refused")
            text = str(reply["text"])
            reason = needs_repair(self.config, text, is_shown=request.is_shown)
            if not reason or len(earlier) >= self.config.num_repairs:
                return Answer(text, tuple(earlier))
            earlier.append(text)
            talk = repair_messages(talk, text, reason, fields)

    def _open(self, request: Request) -> list[Message]:
        """Begins the conversation, with the picture if the model is to look at it."""
        if not request.is_shown:
            return messages_for(self.config, request)
        content = self.pictures[request.picture]
        return messages_about(self.config, request, picture_part(content, format_of(content)))

    def _ask(self, client: ChatClient, request: Request, talk: Sequence[Message]) -> Record:
        """Takes the reply from the journal if it is there, else from the server."""
        config = self.config
        body: Record = {
            "model": config.model,
            "messages": list(talk),
            "temperature": config.temperature,
            "max_tokens": config.max_new_tokens,
            "seed": hash_to_seed(config.seed, request.topic, request.attempt) % 2**31,
        }
        if config.top_p is not None:
            body["top_p"] = config.top_p
        if form := _response_format(config, LOOK_FIELDS if request.is_shown else JSON_FIELDS):
            body["response_format"] = form
        key = content_hash(json.dumps(body, sort_keys=True), request.attempt)
        return self.journal.once(key, partial(client.ask, body))


def _response_format(config: PromptsConfig, fields: Sequence[str]) -> dict[str, object] | None:
    if config.server.response_format == "json_schema":
        types = [name for name, _ in config.edit_types]
        kinds = {name: {"type": "string"} for name in fields} | {"edit_type": {"type": "string", "enum": types}}
        schema = {"type": "object", "properties": kinds, "required": list(kinds), "additionalProperties": False}
        return {"type": "json_schema", "json_schema": {"name": "edit", "schema": schema, "strict": True}}
    return {"type": "json_object"} if config.server.response_format == "json_object" else None
