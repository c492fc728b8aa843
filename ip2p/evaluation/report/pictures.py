"""Pictures inside the page: small ones lossless and enlarged pixel by pixel, large ones reduced; and who is shown."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ip2p.evaluation.report.reading import UNREADABLE

logger = logging.getLogger(__name__)

LARGEST_SIDE = 256
SMALL_SIDE = 128
"""Pictures up to this size are shown at twice their size."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An inlined picture and the size at which it is shown."""

    uri: str
    width: int
    height: int
    alt: str
    pixelated: bool


def inline(content: bytes, alt: str) -> Picture | None:
    """A picture as a data URI; None where it does not decode."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGB")
    except UNREADABLE as error:
        logger.warning("left a picture out of the report: %s", error)
        return None
    small = max(image.size) <= SMALL_SIDE
    if not small:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=small, quality=85)
    shown = 2 if small else 1
    uri = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(uri, image.width * shown, image.height * shown, alt, small)


def take_turns(
    rows: Sequence[dict[str, Any]], group: Callable[[dict[str, Any]], Any], num: int
) -> list[dict[str, Any]]:
    """At most `num` rows, in turns from every group; within a group in an order by hash that nobody picked."""
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=_shuffle_key):
        groups[group(row)].append(row)
    turns = [(turn, str(name), row) for name, some in groups.items() for turn, row in enumerate(some)]
    return [row for _, _, row in sorted(turns, key=lambda item: item[:2])[:num]]


def _shuffle_key(row: dict[str, Any]) -> str:
    identity = f"{row.get('triplet_id', '')}/{row.get('candidate', row.get('case', ''))}"
    return hashlib.sha256(identity.encode()).hexdigest()
