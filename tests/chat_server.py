"""A server that speaks the OpenAI chat protocol on loopback, with faults on demand: real sockets, real statuses.

It answers from a rule, so that the answer to a caption is known, and counts what it was asked.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from ip2p.images import open_pixels
from ip2p.prompts.format import LOOK_FIELDS, format_json
from ip2p.records import hash_picture

Fault = str
"""A status and perhaps a code, such as `429`, or `hang`, `half` (a body cut short), `reset`, `empty` (no choice) or
`garbage` (no JSON)."""

S = TypeVar("S", bound="FaultyServer")


def picture_of(messages: list[dict[str, Any]]) -> bytes:
    """The file of the picture that is shown; empty if there is none."""
    parts = [part for each in messages if isinstance(each["content"], list) for part in each["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return base64.b64decode(urls[-1].partition(";base64,")[2]) if urls else b""


def question_of(messages: list[dict[str, Any]]) -> tuple[str, str]:
    """Caption, or the shown picture's hash, and edit type; a repair is about the last question before it."""
    if shown := picture_of(messages):
        (parts,) = [each["content"] for each in messages if isinstance(each["content"], list)]
        return hash_picture(shown), parts[-1]["text"].removeprefix("Edit type: ")
    asked = [found for each in messages if (found := re.match(r"Caption: (.*)\nEdit type: (.*)", each["content"]))]
    return json.loads(asked[-1][1]), asked[-1][2]


def colour_of(picture: bytes) -> str:
    """What the server sees in a picture: the channel that is brightest on the whole."""
    return ("red", "green", "blue")[int(open_pixels(picture).mean((0, 1)).argmax())]


def well_behaved(messages: list[dict[str, Any]]) -> str:
    """An answer as asked."""
    caption, edit_type = question_of(messages)
    if shown := picture_of(messages):
        seen = f"a {colour_of(shown)} thing"
        texts = (edit_type, seen, f"now by way of {edit_type}", f"{seen}, {edit_type}")
        return json.dumps(dict(zip(LOOK_FIELDS, texts, strict=True)))
    return format_json(edit_type, f"now by way of {edit_type}", f"{caption}, {edit_type}")


class FaultyServer(ThreadingHTTPServer):
    """Counts what it is asked; `faults` says what happens to the n-th request about a question."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, handler: type[FaultyHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.faults: Callable[[str, int], Fault] = lambda question, number: ""
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.at_once = self.most_at_once = 0
        self.seconds = 0.0
        self.lock = threading.Condition()
        self.closed = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def wait_until_idle(self) -> None:
        """Returns once no request is under way."""
        with self.lock:
            self.lock.wait_for(lambda: self.at_once == 0)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class FaultyHandler(BaseHTTPRequestHandler):
    """Answers a request, or does not, as the server's faults say."""

    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""

    def read_question(self, content: bytes) -> tuple[Any, str]:
        """What was sent, and what it asks about."""
        raise NotImplementedError

    def answer(self, body: Any) -> dict[str, Any]:
        """The answer, as JSON values."""
        raise NotImplementedError

    def do_POST(self) -> None:
        body, question = self.read_question(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.asked[question] += 1
            number = server.asked[question]
            server.keys.add(self.headers["authorization"])
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            server.closed.wait(server.seconds)
            self._reply(body, question, server.faults(question, number))
        finally:
            with server.lock:
                server.at_once -= 1
                server.lock.notify_all()

    def _reply(self, body: Any, question: str, fault: Fault) -> None:
        if fault[:3].isdigit():
            status, _, code = fault.partition(" ")
            self.send(int(status), json.dumps({"error": {"message": f"fault {status}", "code": code or None}}))
        elif fault == "hang":
            self.server.closed.wait()
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif fault == "empty":
            self.send(
                200, json.dumps({"id": "x", "object": "chat.completion", "created": 0, "choices": [], "data": []})
            )
        elif fault == "garbage":
            self.send(200, "{ this is")
        else:
            with self.server.lock:
                self.server.answered[question] += fault != "half"
            self.send(200, json.dumps(self.answer(body)), half=fault == "half")

    def send(self, status: int, content: str | bytes, *, kind: str = "application/json", half: bool = False) -> None:
        """Sends an answer, or the first half of it."""
        content = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        if status == 429:
            self.send_header("retry-after", "0.01")
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if half else content)
        if half:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


class ChatServer(FaultyServer):
    """Answers by `answer`; a question is a caption."""

    def __init__(self) -> None:
        super().__init__(_ChatHandler)
        self.answer: Callable[[list[dict[str, Any]]], str] = well_behaved
        self.bodies: list[dict[str, Any]] = []


class _ChatHandler(FaultyHandler):
    def read_question(self, content: bytes) -> tuple[Any, str]:
        body = json.loads(content)
        with self.server.lock:
            self.server.bodies.append(body)
        return body, question_of(body["messages"])[0]

    def answer(self, body: Any) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.server.answer(body["messages"])}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}


def serving() -> AbstractContextManager[ChatServer]:
    """A chat server in a thread of its own, until the body ends."""
    return running(ChatServer())


@contextmanager
def running(server: S) -> Iterator[S]:
    """Runs a server in a thread of its own, until the body ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()
