"""A server of the OpenAI route that edits pictures, on loopback: it changes pixels by a rule, with faults on demand."""

from __future__ import annotations

import base64
from collections.abc import Callable
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

import numpy as np

from ip2p.images import Array, encode_png, open_pixels
from tests.chat_server import FaultyHandler, FaultyServer

Form = dict[str, Any]
"""The fields of a request: texts, and the bytes of the picture."""


def inverted(picture: Array, form: Form) -> bytes:
    """The picture's negative, shifted by the seed."""
    return encode_png(np.asarray(255 - picture + int(form.get("seed", 0)) % 7, np.uint8))


class ImagesServer(FaultyServer):
    """Edits by `edit`; a question is an instruction. With `by_address`, pictures are fetched from an address."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.edit: Callable[[Array, Form], bytes] = inverted
        self.forms: list[Form] = []
        self.by_address = False
        self.fetch_faults: Callable[[int], int] = lambda number: 0
        """The status with which the n-th fetch is answered; 0 for the picture."""
        self.fetched: list[str | None] = []
        """The key that each fetch came with."""
        self.pictures: list[bytes] = []


class _Handler(FaultyHandler):
    def read_question(self, content: bytes) -> tuple[Any, str]:
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        parts = BytesParser(policy=HTTP).parsebytes(head + content).iter_parts()
        form: Form = {}
        for part in parts:
            name, value = str(part.get_param("name", header="content-disposition")), part.get_payload(decode=True)
            assert isinstance(value, bytes)
            form[name] = value if part.get_filename() else value.decode()
        with self.server.lock:
            self.server.forms.append(form | {"path": self.path})
        return form, form["prompt"]

    def answer(self, body: Any) -> dict[str, Any]:
        edited = self.server.edit(open_pixels(body["image"]), body)
        if not self.server.by_address:
            return {"created": 0, "data": [{"b64_json": base64.b64encode(edited).decode()}]}
        with self.server.lock:
            self.server.pictures.append(edited)
            return {"created": 0, "data": [{"url": f"/pictures/{len(self.server.pictures) - 1}"}]}

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.fetched.append(self.headers["authorization"])
            status = self.server.fetch_faults(len(self.server.fetched))
        if status:
            self.send(status, "no")
        else:
            self.send(200, self.server.pictures[int(self.path.rpartition("/")[2])], kind="image/png")
