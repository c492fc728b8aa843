"""True drawings of scenes as pictures with captions: a source of `prompts.pictures`, or files on disk.

`python -m ip2p.shapes.draw OUT --num 100` writes them as files, each with its caption in a .txt file beside it.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ip2p.images import Array, encode_png
from ip2p.shapes.language import draw_caption
from ip2p.shapes.scene import Scene, draw_scene, render
from ip2p.store import write_bytes


class Drawings:
    """Draws any number of scenes; each is a pure function of its number."""

    def caption(self, number: int) -> str:
        """Returns the caption of a scene."""
        return _draw(number)[1]

    def picture(self, number: int) -> Array:
        """Returns the drawing of a scene, (64, 64, 3) uint8."""
        return render(_draw(number)[0])


@functools.cache
def _draw(number: int) -> tuple[Scene, str]:
    rng = random.Random(f"picture {number}")
    scene = draw_scene(rng)
    return scene, draw_caption(rng, scene)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingFiles:
    """Writes drawings of scenes as pictures with captions."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder for the pictures."""
    num: int = 100
    """Number of pictures."""

    def write(self) -> None:
        """Writes `00000.png` and `00000.txt`, and so on."""
        drawings = Drawings()
        for number in range(self.num):
            write_bytes(self.out / f"{number:05d}.png", encode_png(drawings.picture(number)))
            write_bytes(self.out / f"{number:05d}.txt", f"{drawings.caption(number)}\n".encode())


if __name__ == "__main__":
    tyro.cli(DrawingFiles).write()
