"""The `template` backend: edits structured captions by rules, without a model, for tests and dry runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from ip2p.prompts.asking import Answer, Request
from ip2p.prompts.format import format_answer
from ip2p.records import hash_to_unit

WORDS = (
    ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray"),
    ("small", "large"),
    ("wooden", "stone", "glass", "marble", "metal", "leather", "ceramic"),
    ("spring", "summer", "autumn", "winter"),
    ("dawn", "noon", "sunset", "night"),
    ("sunny", "rainy", "foggy", "snowy", "stormy"),
    ("circle", "square", "triangle", "star", "ring", "cross"),
)
"""Words of one kind, which can replace one another."""
STYLES = ("watercolour painting", "pencil drawing", "woodcut", "mosaic", "oil painting", "cartoon")


class TemplateBackend:
    """Replaces a word by another of its kind, or turns the whole into a work in some style."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def answer(self, requests: Sequence[Request], *, on_answer: Callable[[int], object]) -> list[Answer]:
        """Returns one answer per request, in order, in the original's format."""
        answers = [Answer(self._write(request)) for request in requests]
        on_answer(len(answers))
        return answers

    def _write(self, request: Request) -> str:
        edits = list(_edits(request.caption))
        first = int(hash_to_unit("template", self.seed, request.topic) * len(edits))
        step = next(step for step in (7, 5, 3, 1) if len(edits) % step or step == 1)
        return format_answer(*edits[(first + step * request.attempt) % len(edits)])


def _edits(caption: str) -> Iterator[tuple[str, str]]:
    """Yields (instruction, edited caption) of every edit that the rules allow."""
    for words in WORDS:
        for match in re.finditer(rf"\b({'|'.join(words)})\b", caption):
            for word in words:
                if word != match[0]:
                    edited = f"{caption[: match.start()]}{word}{caption[match.end() :]}"
                    yield f"change the {_about(caption, match)} to {word}", edited
    for style in STYLES:
        if style not in caption:
            yield f"make it a {style}", f"{style} of {caption}"


def _about(caption: str, match: re.Match[str]) -> str:
    """Returns `red circle` for the red in `a red circle on …`: the word with the one that it describes, if any."""
    after = re.match(r" (\w+)", caption[match.end() :])
    return f"{match[0]} {after[1]}" if after and len(after[1]) > 2 else match[0]
