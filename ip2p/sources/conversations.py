"""Pairs that are written as a conversation: two or more pictures, and the turns of a user and a model.

GPT-Image-Edit and UniWorld annotate so: `image` lists what is given and, last, what is wanted, and the user's first
turn is the instruction, with a marker for each picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IMAGE_MARKER = "<image>"
USERS = ("human", "user")


def without_conversation(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the values of a row; those of a conversation as `original_image, edit_prompt, edited_image`."""
    pictures, turns = values.get("image"), values.get("conversations")
    if not isinstance(pictures, list) or not isinstance(turns, list) or len(pictures) < 2:
        return values
    said = [turn.get("value") for turn in turns if isinstance(turn, dict) and turn.get("from") in USERS]
    instruction = said[0].replace(IMAGE_MARKER, "").strip() if said and isinstance(said[0], str) else None
    others = {name: value for name, value in values.items() if name not in ("image", "conversations")}
    second = {"reference_image_2": pictures[1]} if len(pictures) > 2 else {}
    pair = {"original_image": pictures[0], "edit_prompt": instruction, "edited_image": pictures[-1]}
    return pair | second | others
