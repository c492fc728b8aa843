"""Gives the encoded instructions of a latent cache: from its parts on disk, or encoded as a step asks for them.

The states of a text are large beside the latents of a pair: 115 KiB for Stable Diffusion, 4 MiB for a T5 of 512 tokens.
Past a limit the encoders stay in memory instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ip2p.models.texts import TextEncoders, Texts, join_texts
from ip2p.training.encoding import autocast_of_step

TEXTS_PER_PART = 1024


class CachedTexts(Protocol):
    """Encoded texts by number; number 0 is no instruction."""

    @property
    def on_host(self) -> bool:
        """Whether `take` needs the host alone, so that a thread may call it ahead of the step."""
        ...

    def __len__(self) -> int: ...

    def take(self, numbers: Sequence[int]) -> Texts:
        """Returns the texts of these numbers, in their order."""
        ...


class StoredTexts:
    """Texts in parts, which are mapped into memory."""

    on_host = True

    def __init__(self, folder: Path) -> None:
        self.parts = [load_file(path) for path in sorted(folder.glob("text-*.safetensors"))]

    def __len__(self) -> int:
        return sum(len(part["text"]) for part in self.parts)

    def take(self, numbers: Sequence[int]) -> Texts:
        """Returns the texts of these numbers, in their order."""
        places = [(self.parts[number // TEXTS_PER_PART], number % TEXTS_PER_PART) for number in numbers]
        hidden = torch.stack([part["text"][row] for part, row in places])
        pooled = torch.stack([part["pooled"][row] for part, row in places]) if "pooled" in self.parts[0] else None
        return Texts(hidden, pooled)


class TextsOfStep:
    """Texts that are encoded when they are asked for, in the precision of the step."""

    on_host = False

    def __init__(self, prompts: Sequence[str], encoders: TextEncoders, accelerator: Accelerator) -> None:
        self.prompts, self.encoders, self.accelerator = prompts, encoders, accelerator

    def __len__(self) -> int:
        return len(self.prompts)

    @torch.no_grad()
    def take(self, numbers: Sequence[int]) -> Texts:
        """Returns the texts of these numbers, in their order."""
        with autocast_of_step(self.accelerator):
            return self.encoders.encode([self.prompts[number] for number in numbers])


class JoinedTexts:
    """The texts of several caches; their numbers count on from cache to cache."""

    def __init__(self, parts: Sequence[CachedTexts]) -> None:
        self.parts, self.on_host = parts, all(part.on_host for part in parts)
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, numbers: Sequence[int]) -> Texts:
        """Returns the texts of these numbers, in their order; each cache is asked once."""
        indices = np.asarray(numbers)
        part_of = np.searchsorted(self.starts, indices, side="right") - 1
        order = np.argsort(part_of, kind="stable")
        groups = [(number, indices[part_of == number] - self.starts[number]) for number in np.unique(part_of)]
        texts = [self.parts[number].take(offsets.tolist()) for number, offsets in groups]
        device = texts[0].hidden.device
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        joined = join_texts([each.map(lambda values: values.to(device, torch.float32)) for each in texts])
        return joined.map(lambda values: values[back.to(values.device)])
