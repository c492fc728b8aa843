"""Asks the route of an OpenAI-compatible server that edits pictures: which answers are pictures, and which are none.

A server answers with the picture itself or with its address, from which it is then fetched; a key never goes there.
Whatever a server says for good (a refusal, no picture, an address without one) is an answer, and is not asked again.
"""

from __future__ import annotations

import base64
import binascii
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from ip2p.images import format_of
from ip2p.server_client import RETRIED, Fault, Reply, ServerClient, seconds_asked

if TYPE_CHECKING:
    from openai import OpenAI

POLICY_CODES = ("content_policy_violation", "moderation_blocked", "content_filter")
"""Codes of refusals that concern the picture or the instruction, not the form of the request."""
MOST_BYTES = 2**27
"""Longer answers are not read."""


@dataclass(frozen=True, slots=True)
class EditAnswer:
    """The content of a picture, or the reason why there is none."""

    content: bytes = b""
    reason: str = ""
    """`refused` or `no_picture`; empty if there is a picture."""
    message: str = ""
    """What the server said, of a refusal."""
    by_policy: bool = False
    """Whether it refused what is to be seen, rather than the form of the request."""
    is_stored: bool = False
    """Whether it was read from disk."""


class ImagesClient(ServerClient):
    """Asks for edited pictures."""

    def edit(self, picture: bytes, form: Mapping[str, Any]) -> EditAnswer:
        """Sends a picture file with the fields of a form, and returns the answer. Errors as in `retry`."""
        reply = self.retry(partial(_send, picture, form))
        if "address" in reply:
            address = urljoin(f"{self.server.base_url}/", reply["address"])
            reply = self.retry(lambda _: _fetch(address, self.server.timeout))
        if "refused" in reply:
            by_policy = reply.get("code") in POLICY_CODES
            return EditAnswer(reason="refused", message=str(reply["refused"]), by_policy=by_policy)
        return EditAnswer(reply["content"], "" if reply["content"] else "no_picture")


def _send(picture: bytes, form: Mapping[str, Any], client: OpenAI) -> Reply | Fault:
    """Sends one request and reads the first picture of its answer."""
    from openai.types import ImagesResponse

    own = {name: value for name, value in form.items() if name in ("model", "prompt")}
    further = {name: value for name, value in form.items() if name not in own}
    kind = format_of(picture)
    file = (f"picture.{kind}", picture, f"image/{kind}")
    reply = client.images.edit(image=file, **own, extra_body=further)
    if not isinstance(reply, ImagesResponse):
        return Fault("an answer that is not JSON")
    first = next(iter(reply.data or ()), None)
    content, address = getattr(first, "b64_json", None), getattr(first, "url", None)
    if content:
        return {"content": _decoded(content)}
    if not address:
        return {"content": b""}
    return {"content": _decoded(address)} if address.startswith("data:") else {"address": address}


def _decoded(text: str) -> bytes:
    """Decodes base64, behind the head of a data URL if there is one; b"" for what is not base64."""
    try:
        return base64.b64decode("".join(text.rpartition("base64,")[2].split()), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _fetch(address: str, timeout: float) -> Reply | Fault:
    """Fetches the picture of an address; one that is gone is no picture."""
    if not address.startswith(("http://", "https://")):
        return {"content": b""}
    try:
        with urllib.request.urlopen(address, timeout=timeout) as answer:
            content = answer.read(MOST_BYTES + 1)
            expected = answer.headers.get("content-length")
    except urllib.error.HTTPError as error:
        if error.code in RETRIED or error.code >= 500:
            return Fault(f"status {error.code} of a picture's address", seconds_asked(error.headers.get("retry-after")))
        return {"content": b""}
    except (OSError, ValueError) as error:  # connections, time-outs and half answers are of these kinds
        return Fault(f"a picture's address: {error}")
    if expected is not None and len(content) < min(int(expected), MOST_BYTES):
        return Fault("half a picture from its address")
    return {"content": content if len(content) <= MOST_BYTES else b""}
