"""The `template` backend: edits of structured captions by rules, without a model. For tests and dry runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from ip2p.prompts.asking import Answer, Request
from ip2p.prompts.format import format_answer
from ip2p.records import hash_to_unit

WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("colour", ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")),
    ("size", ("small", "large")),
    ("material", ("wooden", "stone", "glass", "marble", "metal", "leather", "ceramic")),
    ("season", ("spring", "summer", "autumn", "winter")),
    ("time of day", ("dawn", "noon", "sunset", "night")),
    ("weather", ("sunny", "rainy", "foggy", "snowy", "stormy")),
    ("shape", ("circle", "square", "triangle", "star", "ring", "cross")),
)
"""Words of a kind stand for one another."""
STYLES = ("watercolour painting", "pencil drawing", "woodcut", "mosaic", "oil painting", "cartoon")


class TemplateBackend:
    """A word is replaced by another of its kind, or the whole becomes a work in some style."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def answer(self, requests: Sequence[Request], *, on_answer: Callable[[int], object]) -> list[Answer]:
        """One answer per request, in order, in the original's format."""
        answers = [Answer(self._write(request)) for request in requests]
        on_answer(len(answers))
        return answers

    def _write(self, request: Request) -> str:
        edits = list(_edits(request.caption))
        first = int(hash_to_unit("template", self.seed, request.caption) * len(edits))
        step = next(step for step in (7, 5, 3, 1) if len(edits) % step or step == 1)
        return format_answer(*edits[(first + step * request.attempt) % len(edits)])


def _edits(caption: str) -> Iterator[tuple[str, str]]:
    """(instruction, edited caption) of every edit that the rules know of."""
    for _, words in WORDS:
        for found in re.finditer(rf"\b({'|'.join(words)})\b", caption):
            for word in words:
                if word != found[0]:
                    edited = f"{caption[: found.start()]}{word}{caption[found.end() :]}"
                    yield f"change the {_about(caption, found)} to {word}", edited
    for style in STYLES:
        if style not in caption:
            yield f"make it a {style}", f"{style} of {caption}"


def _about(caption: str, found: re.Match[str]) -> str:
    """`red circle` of `a red circle on …`: the word with the one after it, where it describes one."""
    after = re.match(r" (\w+)", caption[found.end() :])
    return f"{found[0]} {after[1]}" if after and len(after[1]) > 2 else found[0]
