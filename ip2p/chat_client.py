"""Asks one OpenAI-compatible endpoint, a few requests at a time, and retries those that fail.

A refusal because of a request's content counts as an answer. The key comes from the environment alone.

The openai client's own retries are off: its delays are fixed (0.5 to 8 seconds), it ignores a Retry-After above a
minute, it does not retry an answer without a text, and it does not stop after another request has failed, all of which
`first_delay`, `max_delay` and `stopped` promise.
"""

from __future__ import annotations

import base64
import logging
import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar

from ip2p.config import ServerConfig

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

logger = logging.getLogger(__name__)

T = TypeVar("T")
A = TypeVar("A")
Reply = dict[str, Any]
"""`{"text": …, "finish_reason": …}` or `{"refused": …}`, as journals store it."""

REFUSED = (400, 413, 422)
"""Statuses that concern this request's content alone, so that they count as answers."""
RETRIED = (408, 409, 425, 429)
"""Statuses below 500 after which a request is retried, as it is after all from 500."""
_slots: dict[tuple[str, int], threading.BoundedSemaphore] = {}
_slots_lock = threading.Lock()


def picture_part(content: bytes, kind: str = "png") -> dict[str, Any]:
    """Returns a picture file of a kind, such as png, as a part of a message."""
    url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


class ChatClient:
    """Asks one server, from any number of threads."""

    def __init__(self, server: ServerConfig) -> None:
        self.server = server
        self.stopped = threading.Event()
        """Set to let no further request start."""
        self._slots = _slots_of(server)
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ValueError("asking a server needs openai. Install it with: pip install 'ip2p[server]'") from error
        key = os.environ.get(server.api_key_variable) or "none"
        self._client = OpenAI(base_url=server.base_url, api_key=key, timeout=server.timeout, max_retries=0)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def ask_together(
        self, questions: Sequence[T], ask_one: Callable[[T], A], on_answer: Callable[[int], object] = lambda _: None
    ) -> list[A]:
        """Calls `ask_one` for every question, in threads; after a failure no other starts and the failure is raised."""

        def ask_or_stop(question: T) -> A:
            try:
                return ask_one(question)
            except BaseException:
                self.stopped.set()
                raise

        with ThreadPoolExecutor(self.server.concurrency) as pool:
            futures = [pool.submit(ask_or_stop, question) for question in questions]
            for future in futures:
                future.add_done_callback(lambda _: on_answer(1))
            wait(futures, return_when=FIRST_EXCEPTION)
            if self.stopped.is_set():
                pool.shutdown(wait=True, cancel_futures=True)
                errors = (future.exception() for future in futures if not future.cancelled())
                raise next(error for error in errors if error is not None and not isinstance(error, Stopped))
        return [future.result() for future in futures]

    def ask(self, request: Mapping[str, Any]) -> Reply:
        """Returns `{"text": …}` or `{"refused": …}`. RuntimeError if no answer comes, ValueError for a wrong key."""
        server = self.server
        for attempt in range(server.max_retries + 1):
            with self._slots:
                if self.stopped.is_set():
                    raise Stopped
                reply = _send(self._client, request, server)
            if isinstance(reply, dict):
                return reply
            logger.info("retrying %s: %s", server.base_url, reply)
            if attempt < server.max_retries:
                self.stopped.wait(_delay(server, attempt, reply.after))
        raise RuntimeError(
            f"{server.base_url} gave no answer in {server.max_retries + 1} attempts: {reply}. "
            "Earlier answers are stored; start the server and run the same command again."
        )


class Stopped(Exception):
    """Raised by a request that did not start, because another one failed."""


class Fault(Exception):
    """A failure that may pass, and the seconds that the server asks to wait."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


def _send(client: OpenAI, request: Mapping[str, Any], server: ServerConfig) -> Reply | Fault:
    """Sends one request and returns an answer, a refusal or a fault. ValueError if retrying cannot help."""
    import openai

    try:
        reply = client.chat.completions.create(**request)
    except openai.APIStatusError as error:
        return _read_status(error, server)
    except (openai.APIConnectionError, openai.APIResponseValidationError, ValueError) as error:
        return Fault(f"{type(error).__name__}: {error}")
    choice = next(iter(getattr(reply, "choices", None) or ()), None)
    text = getattr(getattr(choice, "message", None), "content", None)
    finish_reason = getattr(choice, "finish_reason", None)
    if isinstance(text, str):
        return {"text": text, "finish_reason": finish_reason}
    if finish_reason == "content_filter":
        return {"refused": "the server's filter"}
    return Fault("an answer without a text")


def _read_status(error: APIStatusError, server: ServerConfig) -> Reply | Fault:
    status, message = error.status_code, " ".join(str(error.message).split())
    if status in REFUSED:
        return {"refused": message}
    if status in RETRIED or status >= 500:
        try:
            after = max(0.0, float(error.response.headers.get("retry-after", 0)))
        except ValueError:
            after = 0.0  # a date; our own delay will do
        return Fault(f"status {status}", after)
    raise ValueError(
        f"{server.base_url} answered with status {status}: {message}. Check the server's base_url, the model and the "
        f"key in {server.api_key_variable}."
    )


def _delay(server: ServerConfig, attempt: int, after: float) -> float:
    """Draws the seconds to wait: doubled each time, at least what the server asks for, at most `max_delay`."""
    longest: float = min(server.max_delay, server.first_delay * 2.0**attempt)
    return max(min(after, server.max_delay), longest * random.uniform(0.5, 1.0))


def _slots_of(server: ServerConfig) -> threading.BoundedSemaphore:
    """Returns the slots that all shards of a process share, so that more workers do not send more at a time."""
    with _slots_lock:
        key = (server.base_url, server.concurrency)
        return _slots.setdefault(key, threading.BoundedSemaphore(server.concurrency))
