"""Which captions of a source are taken, and why the others are not."""

from __future__ import annotations

import html
import re
from typing import Literal

from ip2p.config import CleaningConfig
from ip2p.prompts.language import reads_as

Dropped = Literal["", "empty", "markup", "too_short", "too_long", "language"]

TAG = re.compile(r"<[^<>]{1,200}>")
ADDRESS = re.compile(r"(https?://|www\.)\S+|\S+@\S+\.\w+", re.IGNORECASE)
FILE_NAME = re.compile(r"\b[\w-]+\.(jpe?g|png|gif|webp|tiff?|bmp|svg|pdf)\b", re.IGNORECASE)
LITTLE_ELSE = 0.25
"""A caption of which less than this share is left was no caption."""


def normalise(text: str) -> str:
    """One space between words, none around."""
    return " ".join(text.split())


def clean_caption(text: str, config: CleaningConfig) -> tuple[str, Dropped]:
    """The caption as it is used, and the reason against it where there is one."""
    plain = normalise(text)
    if config.strip_markup:
        stripped = strip_markup(plain)
        if len(stripped) < LITTLE_ELSE * len(plain):
            return stripped, "markup"
        plain = stripped
    if not plain:
        return plain, "empty"
    num_words = len(plain.split())
    if num_words < config.min_words:
        return plain, "too_short"
    if config.max_words is not None and num_words > config.max_words:
        return plain, "too_long"
    return plain, "" if reads_as(plain, config.language) else "language"


def strip_markup(text: str) -> str:
    """Without tags, entities, addresses and names of picture files."""
    plain = TAG.sub(" ", html.unescape(text))
    for pattern in (ADDRESS, FILE_NAME):
        plain = pattern.sub(" ", plain)
    return normalise(plain).strip(" |-–—:;,")
