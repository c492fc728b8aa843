"""The `server` backend: any OpenAI-compatible endpoint, many requests at once, and again after faults that may pass.

Every answer is in the journal before it is used, so a kill costs the requests in flight and no answer is paid twice.
What a server refuses for its content is an answer too.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from ip2p.config import PromptsConfig, ServerConfig
from ip2p.prompts.asking import Answer, Message, Request, messages_for, needs_repair, repair_messages
from ip2p.prompts.journal import Journal
from ip2p.prompts.parse import JSON_FIELDS
from ip2p.records import content_hash, hash_to_seed

if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

REFUSED = (400, 413, 422)
"""Statuses that speak of this request's content alone; others that are no success are a fault or a mistake."""
MAY_PASS = (408, 409, 425, 429)
"""Statuses below 500 after which a request is sent again."""
_slots: dict[tuple[str, int], threading.BoundedSemaphore] = {}
_slots_lock = threading.Lock()


class ServerBackend:
    """Requests of a shard go out together, as many at a time as the config says for the whole process."""

    def __init__(self, config: PromptsConfig, journal: Journal) -> None:
        self.config, self.journal = config, journal
        self.slots = _slots_of(config.server)
        self.stopped = threading.Event()

    def answer(self, requests: Sequence[Request], *, on_answer: Callable[[int], object]) -> list[Answer]:
        """One answer per request, in order. RuntimeError where the server stays away; what came before it is kept."""
        with _open_client(self.config.server) as client, ThreadPoolExecutor(self.config.server.concurrency) as pool:
            futures = [pool.submit(self._answer_one, client, request) for request in requests]
            for future in futures:
                future.add_done_callback(lambda _: on_answer(1))
            wait(futures, return_when=FIRST_EXCEPTION)
            if self.stopped.is_set():
                pool.shutdown(wait=True, cancel_futures=True)
                raise next(error for future in futures if (error := _error_of(future)))
        answers = [future.result() for future in futures]
        self._check_not_all_refused(answers)
        return answers

    def _answer_one(self, client: OpenAI, request: Request) -> Answer:
        try:
            return self._converse(client, request)
        except BaseException:
            self.stopped.set()  # no other request is begun
            raise

    def _converse(self, client: OpenAI, request: Request) -> Answer:
        talk, earlier = messages_for(self.config, request), list[str]()
        while True:
            found = self._ask(client, request, talk)
            if "refused" in found:
                return Answer(str(found["refused"]), tuple(earlier), "refused")
            text = str(found["text"])
            reason = needs_repair(self.config, text)
            if not reason or len(earlier) >= self.config.num_repairs:
                return Answer(text, tuple(earlier))
            earlier.append(text)
            talk = repair_messages(talk, text, reason)

    def _ask(self, client: OpenAI, request: Request, talk: Sequence[Message]) -> dict[str, Any]:
        """From the journal where it is there, else from the server."""
        asked = self._settings(request, talk)
        key = content_hash(json.dumps(asked, sort_keys=True), request.attempt)
        known = self.journal.get(key)
        if known is not None:
            return known
        found = self._send_until_answered(client, asked)
        self.journal.add(key, found)
        return found

    def _settings(self, request: Request, talk: Sequence[Message]) -> dict[str, Any]:
        config = self.config
        more = {"response_format": form} if (form := _response_format(config)) else {}
        return {
            "model": config.model,
            "messages": list(talk),
            "temperature": config.temperature,
            "max_tokens": config.max_new_tokens,
            "seed": hash_to_seed(config.seed, request.caption, request.attempt) % 2**31,
            **more,
        }

    def _send_until_answered(self, client: OpenAI, asked: dict[str, Any]) -> dict[str, Any]:
        server = self.config.server
        for attempt in range(server.max_retries + 1):
            with self.slots:
                if self.stopped.is_set():
                    raise Stopped
                found = _send(client, asked, server)
            if isinstance(found, dict):
                return found
            logger.info("asking %s again: %s", server.base_url, found)
            if attempt < server.max_retries:
                self.stopped.wait(_delay(server, attempt, found.after))
        raise RuntimeError(
            f"{server.base_url} gave no answer in {server.max_retries + 1} attempts: {found}. "
            "What it answered is kept; start the server and run the same command again."
        )

    def _check_not_all_refused(self, answers: Sequence[Answer]) -> None:
        if len(answers) > 1 and all(answer.reason == "refused" for answer in answers):
            self.journal.path.unlink(missing_ok=True)
            raise ValueError(
                f"{self.config.server.base_url} refused every request: {answers[0].text}. Check prompts.model, "
                "prompts.max_new_tokens and prompts.server.response_format."
            )


class Stopped(Exception):
    """Not begun, because another request failed."""


class Fault(Exception):
    """Something that may pass, and how many seconds the server wants to be left alone."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


def _send(client: OpenAI, asked: dict[str, Any], server: ServerConfig) -> dict[str, Any] | Fault:
    """One request: an answer, a refusal, or a fault. ValueError where trying again is of no use."""
    import openai

    try:
        reply = client.chat.completions.create(**asked)
    except openai.APIStatusError as error:
        return _read_status(error, server)
    except (openai.APIConnectionError, openai.APIResponseValidationError, ValueError) as error:
        return Fault(f"{type(error).__name__}: {error}")
    choice = next(iter(getattr(reply, "choices", None) or ()), None)
    text = getattr(getattr(choice, "message", None), "content", None)
    if choice is None or not isinstance(text, str):
        return {"refused": "the server's filter"} if _filtered(choice) else Fault("an answer without a text")
    return {"text": text, "finish_reason": choice.finish_reason}


def _filtered(choice: Any) -> bool:
    return getattr(choice, "finish_reason", None) == "content_filter"


def _read_status(error: Any, server: ServerConfig) -> dict[str, Any] | Fault:
    status, message = error.status_code, " ".join(str(error.message).split())
    if status in REFUSED:
        return {"refused": message}
    if status in MAY_PASS or status >= 500:
        return Fault(f"status {status}", _retry_after(error.response.headers))
    raise ValueError(
        f"{server.base_url} answered with status {status}: {message}. Check prompts.server.base_url, prompts.model and "
        f"the key in {server.api_key_variable}."
    )


def _retry_after(headers: Any) -> float:
    try:
        return max(0.0, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0  # a date; the delay of our own will do


def _delay(server: ServerConfig, attempt: int, after: float) -> float:
    """Seconds: doubled each time and drawn, so that clients do not come back together; never less than asked for."""
    longest: float = min(server.max_delay, server.first_delay * 2.0**attempt)
    return max(min(after, server.max_delay), longest * random.uniform(0.5, 1.0))


def _open_client(server: ServerConfig) -> OpenAI:
    """Repeats nothing by itself; the key comes from the environment alone."""
    try:
        from openai import OpenAI
    except ImportError as error:
        raise ValueError("prompts.backend server needs openai. Install it with: pip install 'ip2p[server]'") from error
    key = os.environ.get(server.api_key_variable) or "none"
    return OpenAI(base_url=server.base_url, api_key=key, timeout=server.timeout, max_retries=0)


def _response_format(config: PromptsConfig) -> dict[str, Any] | None:
    if config.server.response_format == "json_schema":
        types = [name for name, _ in config.edit_types]
        kinds = {name: {"type": "string"} for name in JSON_FIELDS} | {"edit_type": {"type": "string", "enum": types}}
        schema = {"type": "object", "properties": kinds, "required": list(kinds), "additionalProperties": False}
        return {"type": "json_schema", "json_schema": {"name": "edit", "schema": schema, "strict": True}}
    return {"type": "json_object"} if config.server.response_format == "json_object" else None


def _slots_of(server: ServerConfig) -> threading.BoundedSemaphore:
    """Shared by the shards of a process, so that more workers do not ask more at a time."""
    with _slots_lock:
        key = (server.base_url, server.concurrency)
        return _slots.setdefault(key, threading.BoundedSemaphore(server.concurrency))


def _error_of(future: Future[Answer]) -> BaseException | None:
    error = None if future.cancelled() else future.exception()
    return None if isinstance(error, Stopped) else error
