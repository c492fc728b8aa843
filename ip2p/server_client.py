"""Reaches one OpenAI-compatible server, a few requests at a time, and retries those that fail.

A refusal because of a request's content counts as an answer. The key comes from the environment alone, and is taken out
of whatever a server or a library says about it.

The openai client's own retries are off: its delays are fixed (0.5 to 8 seconds), it ignores a Retry-After above a
minute, it does not retry an answer without a text, and it does not stop after another request has failed, all of which
`first_delay`, `max_delay` and `stopped` promise.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar

from ip2p.config import EndpointConfig
from ip2p.proxies import proxy_for

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

logger = logging.getLogger(__name__)

T = TypeVar("T")
A = TypeVar("A")
Reply = dict[str, Any]
"""An answer, or `{"refused": …}` with what the server says."""

REFUSED = (400, 413, 422)
"""Statuses that concern this request's content alone, so that they count as answers."""
RETRIED = (408, 409, 425, 429)
"""Statuses below 500 after which a request is retried, as it is after all from 500."""
SHORTEST_SECRET = 8
"""Letters of a key that is one; shorter ones are the word that a local server is told."""
_slots: dict[tuple[str, int], threading.BoundedSemaphore] = {}
_slots_lock = threading.Lock()


class ServerClient:
    """Asks one server, from any number of threads. A subclass knows the requests of one route."""

    def __init__(self, server: EndpointConfig) -> None:
        self.server = server
        self.stopped = threading.Event()
        """Set to let no further request start."""
        self._slots = _slots_of(server)
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ValueError("asking a server needs openai. Install it with: pip install 'ip2p[server]'") from error
        self._key = os.environ.get(server.api_key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError(
                f"the key in {server.api_key_variable} holds a line break or another character that cannot be sent. "
                "Set the variable to the key alone."
            )
        self._client = OpenAI(
            base_url=server.base_url, api_key=self._key or "none", timeout=server.timeout, max_retries=0
        )

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

    def retry(self, send: Callable[[OpenAI], Reply | Fault]) -> Reply:
        """Sends until there is an answer or a refusal. RuntimeError if none comes, ValueError for a wrong key.

        `send` returns a fault, or lets the errors of the openai client pass.
        """
        server = self.server
        for attempt in range(server.max_retries + 1):
            with self._slots:
                if self.stopped.is_set():
                    raise Stopped
                reply = self._try(send)
            if isinstance(reply, dict):
                return reply
            logger.info("retrying %s: %s", server.base_url, reply)
            if attempt < server.max_retries:
                self.stopped.wait(_delay(server, attempt, reply.after))
        proxy = proxy_for(server.base_url)
        through = f" through the proxy {proxy}" if proxy else ""
        raise RuntimeError(
            f"{server.base_url} gave no answer{through} in {server.max_retries + 1} attempts: {reply}. "
            "Earlier answers are stored; start the server and run the same command again."
        )

    def _try(self, send: Callable[[OpenAI], Reply | Fault]) -> Reply | Fault:
        """Sends once and returns an answer, a refusal or a fault. ValueError if retrying cannot help."""
        import openai

        try:
            return send(self._client)
        except openai.APIStatusError as error:
            return self._read_status(error)
        except openai.APITimeoutError:
            return Fault(f"no answer within {self.server.timeout:g} s")
        except (openai.APIConnectionError, openai.APIResponseValidationError, ValueError) as error:
            return Fault(self._without_key(f"{type(error).__name__}: {error.__cause__ or error}"))

    def _read_status(self, error: APIStatusError) -> Reply | Fault:
        server, status = self.server, error.status_code
        message = self._without_key(" ".join(str(error.message).split()))
        if status in REFUSED:
            return {"refused": message, "code": getattr(error, "code", None)}
        if status in RETRIED or status >= 500:
            return Fault(f"status {status}", seconds_asked(error.response.headers.get("retry-after")))
        raise ValueError(
            f"{server.base_url} answered with status {status}: {message}. Check the server's base_url, the model and "
            f"the key in {server.api_key_variable}."
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "(the key)") if len(self._key) >= SHORTEST_SECRET else text


class Stopped(Exception):
    """Raised by a request that did not start, because another one failed."""


class Fault(Exception):
    """A failure that may pass, and the seconds that the server asks to wait."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


def seconds_asked(header: str | None) -> float:
    """Returns the seconds of a Retry-After header; 0 for none, and for a date, for which our own delay will do."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0


def _delay(server: EndpointConfig, attempt: int, after: float) -> float:
    """Draws the seconds to wait: doubled each time, at least what the server asks for, at most `max_delay`."""
    longest: float = min(server.max_delay, server.first_delay * 2.0**attempt)
    return max(min(after, server.max_delay), longest * random.uniform(0.5, 1.0))


def _slots_of(server: EndpointConfig) -> threading.BoundedSemaphore:
    """Returns the slots that all shards of a process share, so that more workers do not send more at a time."""
    with _slots_lock:
        key = (server.base_url, server.concurrency)
        return _slots.setdefault(key, threading.BoundedSemaphore(server.concurrency))
