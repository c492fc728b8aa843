"""Asks one OpenAI-compatible endpoint, a few requests at a time, and repeats those that fail for a while.

What a server refuses for its content is an answer too. The key comes from the environment alone.

The openai client's own retries stay off: its delays are fixed (0.5 to 8 seconds), it ignores a Retry-After above a
minute, it does not repeat an answer without a text, and it does not stop when another request has failed, all of which
`first_delay`, `max_delay` and `stopped` promise.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar

from ip2p.config import ServerConfig

if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

T = TypeVar("T")
A = TypeVar("A")

REFUSED = (400, 413, 422)
"""Statuses about this request's content alone; other failures are a fault or a mistake."""
RETRIED = (408, 409, 425, 429)
"""Statuses below 500 after which a request is sent again."""
_slots: dict[tuple[str, int], threading.BoundedSemaphore] = {}
_slots_lock = threading.Lock()


class ChatClient:
    """Asks one server, from any number of threads."""

    def __init__(self, server: ServerConfig) -> None:
        self.server = server
        self.stopped = threading.Event()
        """Set by whoever wants no further request to start."""
        self._slots = _slots_of(server)
        self._client = _open_client(server)

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

    def ask_together(
        self, wishes: Sequence[T], ask_one: Callable[[T], A], on_answer: Callable[[int], object] = lambda _: None
    ) -> list[A]:
        """Calls `ask_one` for every wish, in threads; after a failure none is started and the failure is raised."""

        def ask_or_stop(wish: T) -> A:
            try:
                return ask_one(wish)
            except BaseException:
                self.stopped.set()
                raise

        with ThreadPoolExecutor(self.server.concurrency) as pool:
            futures = [pool.submit(ask_or_stop, wish) for wish in wishes]
            for future in futures:
                future.add_done_callback(lambda _: on_answer(1))
            wait(futures, return_when=FIRST_EXCEPTION)
            if self.stopped.is_set():
                pool.shutdown(wait=True, cancel_futures=True)
                raise next(error for future in futures if (error := _error_of(future)))
        return [future.result() for future in futures]

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Returns `{"text": …}` or `{"refused": …}`. RuntimeError if no answer comes, ValueError for a wrong key."""
        server = self.server
        for attempt in range(server.max_retries + 1):
            with self._slots:
                if self.stopped.is_set():
                    raise Stopped
                found = _send(self._client, asked, server)
            if isinstance(found, dict):
                return found
            logger.info("asking %s again: %s", server.base_url, found)
            if attempt < server.max_retries:
                self.stopped.wait(_delay(server, attempt, found.after))
        raise RuntimeError(
            f"{server.base_url} gave no answer in {server.max_retries + 1} attempts: {found}. "
            "What it answered is kept; start the server and run the same command again."
        )


class Stopped(Exception):
    """Raised by a request that did not start, because another one failed."""


class Fault(Exception):
    """A failure that may pass, and how many seconds the server asks to wait."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


def _error_of(future: Future[Any]) -> BaseException | None:
    error = None if future.cancelled() else future.exception()
    return None if isinstance(error, Stopped) else error


def _send(client: OpenAI, asked: dict[str, Any], server: ServerConfig) -> dict[str, Any] | Fault:
    """Sends one request: an answer, a refusal, or a fault. ValueError if trying again is of no use."""
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
    if status in RETRIED or status >= 500:
        return Fault(f"status {status}", _retry_after(error.response.headers))
    raise ValueError(
        f"{server.base_url} answered with status {status}: {message}. Check the server's base_url, the model and the "
        f"key in {server.api_key_variable}."
    )


def _retry_after(headers: Any) -> float:
    try:
        return max(0.0, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0  # a date; our own delay will do


def _delay(server: ServerConfig, attempt: int, after: float) -> float:
    """Draws the seconds to wait, doubled each time; at least what the server asks for, at most `max_delay`."""
    longest: float = min(server.max_delay, server.first_delay * 2.0**attempt)
    return max(min(after, server.max_delay), longest * random.uniform(0.5, 1.0))


def _open_client(server: ServerConfig) -> OpenAI:
    """Opens a client that repeats nothing by itself."""
    try:
        from openai import OpenAI
    except ImportError as error:
        raise ValueError("asking a server needs openai. Install it with: pip install 'ip2p[server]'") from error
    key = os.environ.get(server.api_key_variable) or "none"
    return OpenAI(base_url=server.base_url, api_key=key, timeout=server.timeout, max_retries=0)


def _slots_of(server: ServerConfig) -> threading.BoundedSemaphore:
    """Returns the slots that the shards of a process share, so that more workers do not ask more at a time."""
    with _slots_lock:
        key = (server.base_url, server.concurrency)
        return _slots.setdefault(key, threading.BoundedSemaphore(server.concurrency))
