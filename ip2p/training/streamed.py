"""Gives the pairs of a latent cache of which the disk holds a window of parts: the present one and the next."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ip2p.training.cache import LatentCache
from ip2p.training.cache_store import Index
from ip2p.training.draws import Batch, SampleStream, StepDraws
from ip2p.training.fetching import FetchedParts
from ip2p.training.text_cache import CachedTexts
from ip2p.training.windows import Window, WindowOrder


class StreamedCache(LatentCache):
    """A cache that is filled, of which parts are copied from its store as steps come to them."""

    def __init__(self, parts: FetchedParts, index: Index, seconds: float, texts: CachedTexts) -> None:
        self.rows = self.fetched = parts
        self.part_sizes = [facts.rows for facts in index.rows]
        self.starts = np.cumsum([0, *self.part_sizes])
        self.source_numbers: NDArray[np.int64] = np.zeros(len(self), dtype=np.int64)
        self.texts, self.seconds, self.dropped = texts, seconds, index.dropped
        self.check_rows()
        self._latent_shape = torch.Size(next(facts.latent_shape for facts in index.rows if facts.rows))

    @property
    def latent_shape(self) -> torch.Size:
        """(C, H, W)."""
        return self._latent_shape

    def load(self, stream: SampleStream, micro_step: int, draws: StepDraws) -> Batch:
        """Returns the batch of a micro-step, given its draws; before, it moves on to the parts of its window.

        Those of the next window are copied meanwhile, unless the batch lies in both, or the training ends before.
        """
        if (order := stream.windows) is not None:
            windows = order.windows(stream.first_sample(micro_step), stream.config.train_batch_size)
            needed = _parts_of(order, windows)
            follower, start = order.after(windows[-1])
            comes = stream.end is None or start < stream.first_sample(stream.end)
            coming = _parts_of(order, [follower]) if len(windows) == 1 and comes else []
            self.fetched.enter(needed, coming)
        return super().load(stream, micro_step, draws)


def _parts_of(order: WindowOrder, windows: list[Window]) -> list[int]:
    """Lists the parts of some windows, each once."""
    return list(dict.fromkeys(part for window in windows for part in order.parts(window)))
