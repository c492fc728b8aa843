"""Asks the chat route of an OpenAI-compatible server."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ip2p.server_client import Fault, Reply, ServerClient

if TYPE_CHECKING:
    from openai import OpenAI


def picture_part(content: bytes, kind: str = "png") -> dict[str, Any]:
    """Returns a picture file of a kind, such as png, as a part of a message."""
    url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


class ChatClient(ServerClient):
    """Asks for texts."""

    def ask(self, request: Mapping[str, Any], *, names_model: bool = False) -> Reply:
        """Returns `{"text": …, "finish_reason": …}` or `{"refused": …}`, as journals store it; errors as in `retry`.

        With `names_model`, a text comes with the `model` that the server says has written it.
        """
        reply = self.retry(partial(_send, request))
        left_out = {"code"} if names_model else {"code", "model"}
        return {name: value for name, value in reply.items() if name not in left_out}


def _send(request: Mapping[str, Any], client: OpenAI) -> Reply | Fault:
    reply = client.chat.completions.create(**request)
    choice = next(iter(getattr(reply, "choices", None) or ()), None)
    text = getattr(getattr(choice, "message", None), "content", None)
    finish_reason = getattr(choice, "finish_reason", None)
    if isinstance(text, str):
        return {"text": text, "finish_reason": finish_reason, "model": getattr(reply, "model", None)}
    if finish_reason == "content_filter":
        return {"refused": "the server's filter"}
    return Fault("an answer without a text")
