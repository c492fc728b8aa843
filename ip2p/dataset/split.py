"""Which split a pair belongs to, so that no caption is in two splits and adding triplets moves none.

The hash of the original caption decides the side, for all pairs of a caption and for good. An edited caption may be
the caption of another pair on the other side; then the pair that comes later in the captions' order is left out and
counted. So captions that are added at the end change nothing of what was there, and no pair ever changes its side.

(A rule that looks at one pair alone would have to drop every pair whose two captions hash to different sides: with a
test fraction of f that leaves a test split of f squared.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from ip2p.records import hash_to_unit

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


def normalise(caption: str) -> str:
    """What makes two captions the same: case, spacing and final marks do not count."""
    return " ".join(caption.split()).strip(" .!?").lower()


def side_of(original_prompt: str, test_fraction: float) -> Split:
    """The side of every pair with this original caption: a pure function of it."""
    return "test" if hash_to_unit("split", normalise(original_prompt)) < test_fraction else "train"


def split_pairs(captions: Iterable[tuple[str, str]], test_fraction: float) -> list[Split | None]:
    """The split of each (original, edited) caption pair, or None where one of the two is in the other split already."""
    owner: dict[str, Split] = {}
    splits: list[Split | None] = []
    for original_prompt, edited_prompt in captions:
        side = side_of(original_prompt, test_fraction)
        texts = normalise(original_prompt), normalise(edited_prompt)
        clean = all(owner.get(text, side) == side for text in texts)
        if clean:
            owner.update(dict.fromkeys(texts, side))
        splits.append(side if clean else None)
    return splits
