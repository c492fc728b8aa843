"""What makes candidate pairs: each module of this package is one backend, found by walking the package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from ip2p.config import MADE_BY_SERVER, OPTIONAL_RANGES, PipelineConfig, RenderingConfig
from ip2p.plugins import classes_in
from ip2p.presets import PRESETS
from ip2p.records import Candidate
from ip2p.rendering.table import DrawnPair, EncodedPair
from ip2p.store import RunFolder

Pictures = Mapping[str, bytes]
"""The stored picture files of a shard by their hash, as a triplet names its own."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Stands for the pair of a candidate that could not be made; it costs that candidate alone."""

    reason: str
    """A few words, stored in the table of candidates."""


class MakesPairs(ABC):
    """Makes the pairs of candidates."""

    name: ClassVar[str]
    """Its value of `rendering.backend`."""
    needs_pictures: ClassVar[bool] = True
    """True if it edits a picture: the original side of a pair is the picture's file, to the byte."""
    draws: ClassVar[tuple[str, ...]] = ()
    """Which of `OPTIONAL_RANGES` it reads."""
    unread: ClassVar[tuple[str, ...]] = ()
    """Further settings that it does not read, which are refused."""

    def check(self, config: RenderingConfig) -> None:
        """Raises a ValueError of one line for settings that cannot work, before anything is loaded.

        Default: refuses what the backend does not read.
        """
        ranges = [name for name in OPTIONAL_RANGES if name not in self.draws]
        drawn = [(section, name) for section in (config, *config.per_edit_type.values()) for name in ranges]
        for section, name in [*drawn, *((config, name) for name in self.unread)]:
            if getattr(section, name) is not None:
                raise ValueError(f"rendering.{name} is not read by the backend {self.name}. Leave it out.")

    def too_long(self, config: RenderingConfig, candidates: Sequence[Candidate]) -> Collection[str]:
        """Returns the ids of triplets whose texts would not be read whole, with a warning each. Default: none."""
        return ()

    def keeping(self, folder: Path) -> MakesPairs:
        """Returns the backend that keeps what must not be asked for twice in a folder of its own. Default: as it is."""
        return self

    @abstractmethod
    def make_pairs(
        self, config: RenderingConfig, candidates: Sequence[Candidate], pictures: Pictures
    ) -> Iterator[DrawnPair | EncodedPair | Failure]:
        """Yields a pair or a failure per candidate, in order, `config.batch_size` at a time.

        Pixels are encoded later, while the next batch is made.

        Each candidate has its own generator, seeded with `spec.seed`: a pair depends on nothing else in its batch.
        """


@cache
def backends() -> Mapping[str, MakesPairs]:
    """Returns the backend of every module of this package by name."""
    classes = classes_in(__name__, __path__, MakesPairs)  # type: ignore[type-abstract]
    return {kind.name: kind() for kind in classes}


def backend_of(config: RenderingConfig) -> MakesPairs:
    """Returns the backend that a config names. ValueError if this version has none of that name."""
    available = backends()
    if config.backend not in available:
        raise ValueError(f"rendering.backend {config.backend} is not available. Known are: {', '.join(available)}.")
    return available[config.backend]


def check_backend(config: PipelineConfig) -> None:
    """Checks that the backend can work and gets what it edits. ValueError of one line, with the way out."""
    backend, rendering = backend_of(config.rendering), config.rendering
    if rendering.backend not in MADE_BY_SERVER:
        _check_run(rendering.model)
        from ip2p.models.loading import check_model_source

        check_model_source(rendering.model, what="rendering.model", marker="model_index.json")
    if backend.needs_pictures and not config.prompts.pictures:
        raise ValueError(
            f"rendering.backend {backend.name} edits pictures, and prompts.pictures is not set. Name a folder, a table "
            "or a hub dataset of pictures."
        )
    if config.prompts.pictures and not backend.needs_pictures:
        raise ValueError(
            f"prompts.pictures is set, and rendering.backend {backend.name} renders both images from captions. Set "
            "rendering.backend to editor, or leave the pictures out."
        )
    backend.check(rendering)


def _check_run(model: str) -> None:
    """Raises a ValueError that names the command if a model is to come from the run of a preset, and is not there."""
    path = Path(model).expanduser()
    if path.name == RunFolder(path.parent).model.name and path.parent.name in PRESETS and not path.exists():
        raise ValueError(
            f"rendering.model {model} does not exist. Make it with `ip2p run {path.parent.name}`, or name another."
        )
