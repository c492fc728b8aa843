"""Keeps a latent cache in a store: every part with a sidecar of facts and, last, an index of them all.

A part that is in the store is never encoded again, on whichever machine a build goes on. The local folder has copies.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open

from ip2p.config import TrainingConfig
from ip2p.store import read_json_or_empty
from ip2p.store.remote import Remote
from ip2p.training.cache import FILLED
from ip2p.training.windows import Window, WindowOrder

logger = logging.getLogger(__name__)

TEXTS = "texts.json"
"""Notes whether a cache keeps its texts; one without this file does."""


@dataclass(frozen=True, slots=True)
class PartFacts:
    """What is known of a part without its tensors."""

    size: int
    """Bytes of the file."""
    rows: int = 0
    latent_shape: Sequence[int] = ()
    """(C, H, W), of the first pair if they have several; none without a pair."""
    dropped: Mapping[str, int] | None = None
    without_mask: Mapping[str, int] | None = None


def facts_of(path: Path) -> PartFacts:
    """Reads the facts off a part's header. SafetensorError if it is damaged."""
    with safe_open(path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        counts: dict[str, str] = file.metadata() or {}
    rows = sum(shape[0] for name, shape in shapes.items() if name.rpartition("/")[2] == "prompt")
    means = [shape[2:] for name, shape in shapes.items() if name.rpartition("/")[2] == "mean"]
    dropped, without_mask = (json.loads(counts.get(name, "{}")) for name in ("dropped", "without_mask"))
    return PartFacts(path.stat().st_size, rows, means[0] if means else (), dropped, without_mask)


@dataclass(frozen=True, slots=True)
class Index:
    """The facts about all parts of a cache that is filled, in the order of their names."""

    files: Mapping[str, PartFacts]

    def names(self, kind: str) -> list[str]:
        """Lists the parts of a kind: `rows` or `text`."""
        return [name for name in self.files if name.startswith(f"{kind}-")]

    @property
    def rows(self) -> list[PartFacts]:
        """The facts about the parts that hold pairs."""
        return [self.files[name] for name in self.names("rows")]

    @property
    def dropped(self) -> Counter[str]:
        """The rows that could not be used, by reason."""
        return total(facts.dropped for facts in self.rows)

    @property
    def without_mask(self) -> Counter[str]:
        """The pairs without a usable mask."""
        return total(facts.without_mask for facts in self.rows)


def total(counts: Iterable[Mapping[str, int] | None]) -> Counter[str]:
    """Adds up counts."""
    added: Counter[str] = Counter()
    for each in counts:
        added.update(each or {})
    return added


class CacheStore:
    """The store of one cache, and the local folder that has copies of its parts."""

    def __init__(self, remote: Remote, folder: Path, stay: Collection[str] | None = None) -> None:
        """Takes the names of the parts of pairs that stay in the local folder once they are stored; None is all."""
        self.remote, self.folder, self.stay = remote, folder, stay
        self._held: set[str] | None = None

    def holds(self, path: Path) -> bool:
        """Tells whether the store has a part, as of the first time that this was asked."""
        if self._held is None:
            self._held = self._listed()
        return path.name in self._held

    def _listed(self) -> set[str]:
        sizes = self.remote.sizes()
        return {name for name in sizes if sizes.get(f"{name}.json")}

    def keep(self, path: Path) -> None:
        """Puts a local part into the store."""
        self.remote.put(path, asdict(facts_of(path)))
        if self.stay is not None and path.name.startswith("rows-") and path.name not in self.stay:
            path.unlink()

    def keep_found(self, path: Path) -> bool:
        """Puts a part of an earlier build into the store. Tells whether there is one that is whole."""
        if not path.exists():
            return False
        try:
            self.keep(path)
        except SafetensorError:
            logger.warning("%s is damaged and is made again", path)
            path.unlink()
            return False
        return True

    def finish(self, num_rows: int, accelerator: Accelerator) -> Index | None:
        """Writes the index once all processes have put their parts into the store, and reads it in each."""
        if accelerator.is_main_process:
            self._write_index(num_rows)
        accelerator.wait_for_everyone()
        return self.index()

    def _write_index(self, num_rows: int) -> None:
        names = sorted(self._listed())
        files = dict(zip(names, self.remote.read_all_json([f"{name}.json" for name in names]), strict=True))
        if damaged := [name for name, facts in files.items() if "size" not in facts]:
            sidecar = f"{self.remote.place}/{damaged[0]}.json"
            raise ValueError(f"{sidecar} cannot be read. Remove it and run again; its part is then put there anew.")
        self.remote.write_json(FILLED, {"rows": num_rows, "files": files})

    def index(self) -> Index | None:
        """Reads the index; None unless the cache is filled."""
        values: dict[str, Any] = self.remote.read_json(FILLED).get("files", {})
        return Index({name: PartFacts(**facts) for name, facts in values.items()}) if values else None

    def pull(self, config: TrainingConfig, accelerator: Accelerator) -> Index | None:
        """Copies the texts of a filled cache and, unless steps ask for its parts, all pairs to each node."""
        index = self.index()
        if index and accelerator.is_local_main_process:
            for kind in ("text",) if config.cache_window else ("text", "rows"):
                for name in index.names(kind):
                    self.pull_part(name, index.files[name].size)
        accelerator.wait_for_everyone()
        return index

    def pull_part(self, name: str, size: int) -> None:
        """Copies a part, unless the local folder has it whole."""
        path = self.folder / name
        if not path.exists() or path.stat().st_size != size:
            self.remote.get(path, size)


def open_cache_store(config: TrainingConfig, folder: Path, num_parts: int) -> CacheStore | None:
    """Opens the store of the cache in a local folder, which lies beside other caches; None if there is no store.

    ValueError if the store is among the local caches.
    """
    if config.latent_cache is None:
        return None
    place = f"{config.latent_cache.rstrip('/')}/{folder.name}"
    remote, local = Remote.open(place, "latent_cache"), folder.parent.resolve()
    if remote.folder is not None and remote.folder.resolve().is_relative_to(local):
        raise ValueError(
            f"latent_cache must lie outside the training's own caches in {local}, got {config.latent_cache}. "
            "Give another folder, or leave it out."
        )
    if config.cache_window is None:
        return CacheStore(remote, folder)
    order = WindowOrder([1] * num_parts, config.cache_window, config.seed)
    return CacheStore(remote, folder, {part_name(number) for number in order.parts(Window(0, 0))})


def is_filled(folder: Path, store: CacheStore | None) -> bool:
    """Tells whether nothing of a cache is to be encoded, all processes the same; a store knows better than a folder."""
    if store is None:
        return (folder / FILLED).exists()
    answers: list[bool] = broadcast_object_list([store.index() is not None])
    return answers[0]


def text_note(folder: Path, store: CacheStore | None) -> dict[str, Any]:
    """Reads whether a cache keeps its texts, if that was noted."""
    return store.remote.read_json(TEXTS) if store else read_json_or_empty(folder / TEXTS)


def part_name(number: int) -> str:
    """Names the file of some pairs."""
    return f"rows-{number:05d}.safetensors"
