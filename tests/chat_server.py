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
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ip2p.images import open_pixels
from ip2p.prompts.format import LOOK_FIELDS, format_json
from ip2p.records import hash_picture

Fault = str
"""`429`, `500`, `400`, `401`, `hang`, `half` (a body cut short), `reset`, `empty` (no choice), `garbage` (no JSON)."""


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


class ChatServer(ThreadingHTTPServer):
    """Answers by `answer`; `faults` says what happens to the n-th request about a caption."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Callable[[list[dict[str, Any]]], str] = well_behaved
        self.faults: Callable[[str, int], Fault] = lambda caption, number: ""
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.bodies: list[dict[str, Any]] = []
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


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        caption, _ = question_of(body["messages"])
        server = self.server
        with server.lock:
            server.asked[caption] += 1
            number = server.asked[caption]
            server.keys.add(self.headers["authorization"])
            server.bodies.append(body)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            server.closed.wait(server.seconds)
            self._reply(body, caption, server.faults(caption, number))
        finally:
            with server.lock:
                server.at_once -= 1
                server.lock.notify_all()

    def _reply(self, body: dict[str, Any], caption: str, fault: Fault) -> None:
        if fault.isdigit():
            self._send(int(fault), json.dumps({"error": {"message": f"fault {fault}"}}))
        elif fault == "hang":
            self.server.closed.wait()
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif fault == "empty":
            self._send(200, json.dumps({"id": "x", "object": "chat.completion", "choices": []}))
        elif fault == "garbage":
            self._send(200, "{ this is")
        else:
            with self.server.lock:
                self.server.answered[caption] += fault != "half"
            self._send(200, json.dumps(_completion(body, self.server.answer(body["messages"]))), half=fault == "half")

    def _send(self, status: int, text: str, *, half: bool = False) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        if status == 429:
            self.send_header("retry-after", "0.01")
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if half else content)
        if half:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def _completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}


@contextmanager
def serving() -> Iterator[ChatServer]:
    """A server in a thread of its own, until the body ends."""
    server = ChatServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()
