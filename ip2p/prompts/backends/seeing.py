"""The `chat` backend for pictures without captions: a vision-language model on this machine looks at each.

Every draw is a hash of (seed, picture, attempt, repair, position), as for texts, so order and resume change no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ip2p.config import PromptsConfig
from ip2p.images import open_picture
from ip2p.models.seeing import SeeingModel
from ip2p.prompts.asking import Answer, Message, Request, messages_about, messages_for, needs_repair, repair_messages
from ip2p.prompts.backends.transformers import draw_tokens
from ip2p.prompts.format import JSON_FIELDS, LOOK_FIELDS
from ip2p.records import hash_to_unit


class SeeingBackend:
    """Asks about a picture at a time."""

    def __init__(self, model: SeeingModel, config: PromptsConfig, pictures: Mapping[str, bytes]) -> None:
        self.model, self.config, self.pictures = model, config, pictures

    def answer(self, requests: Sequence[Request], *, on_answer: Callable[[int], object]) -> list[Answer]:
        """Returns one answer per request, in order."""
        answers = []
        for request in requests:
            answers.append(self._converse(request))
            on_answer(1)
        return answers

    def _converse(self, request: Request) -> Answer:
        config, earlier = self.config, list[str]()
        talk = messages_about(config, request, {"type": "image"}) if request.is_shown else messages_for(config, request)
        while True:
            text = self._continue(request, talk, len(earlier))
            reason = needs_repair(config, text, is_shown=request.is_shown)
            if not reason or len(earlier) >= config.num_repairs:
                return Answer(text, tuple(earlier))
            earlier.append(text)
            talk = repair_messages(talk, text, reason, LOOK_FIELDS if request.is_shown else JSON_FIELDS)

    def _continue(self, request: Request, talk: Sequence[Message], repair: int) -> str:
        pictures = [open_picture(self.pictures[request.picture])] if request.is_shown else []
        draw = DrawByHash(self.config, (request.topic, request.attempt, *([repair] if repair else [])))
        return self.model.answer(_as_parts(talk), pictures, max_new_tokens=self.config.max_new_tokens, draw=draw)


def _as_parts(talk: Sequence[Message]) -> list[dict[str, Any]]:
    """Writes every content as parts, and the system's before the first question: some templates know no system."""
    contents = [each["content"] for each in talk]
    parts = [[{"type": "text", "text": each}] if isinstance(each, str) else each for each in contents]
    first = {"role": talk[1]["role"], "content": [*parts[0], *parts[1]]}
    rest = zip(talk[2:], parts[2:], strict=True)
    return [first, *({"role": message["role"], "content": content} for message, content in rest)]


class DrawByHash(LogitsProcessor):
    """Leaves the one token that is drawn."""

    def __init__(self, config: PromptsConfig, draws: Sequence[object]) -> None:
        self.config, self.draws, self.position = config, draws, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = hash_to_unit(self.config.seed, *self.draws, self.position)
        token = draw_tokens(scores.float(), [uniform], self.config.temperature, self.config.top_p)
        self.position += 1
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None].to(scores.device), 0.0)
