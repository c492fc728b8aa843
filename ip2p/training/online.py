"""Gives pairs without a cache: decoded by worker processes ahead of the step, encoded at the step.

It serves random crops, and data that are seen too few times to be worth a cache. A step sees the same as with a cache:
samples, mirroring and crops come from the step's draws, not from the workers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ip2p.config import TrainingConfig
from ip2p.models.architecture import base_architecture
from ip2p.models.components import latent_shape
from ip2p.training.buckets import framing_of
from ip2p.training.data import TableRows
from ip2p.training.decoding import CENTRE, DecodedPair, decode_pair
from ip2p.training.draws import Batch, SampleKey, SampleStream, StepDraws
from ip2p.training.encoding import autocast_of_step, changed_of, encode_pairs, load_encoder, sizes_of
from ip2p.training.joining import JoinedRows

logger = logging.getLogger(__name__)

MAX_UNUSABLE = 20


@dataclass(frozen=True, slots=True)
class Decoded:
    """A batch from the workers."""

    pixels: Tensor
    """(N, 2, H, W, 3) uint8."""
    sizes: Tensor
    prompts: list[str]
    changed: Tensor | None

    def pin_memory(self) -> Decoded:
        """Pins the batch; the loader calls it if it feeds a GPU."""
        changed = None if self.changed is None else self.changed.pin_memory()
        return Decoded(self.pixels.pin_memory(), self.sizes.pin_memory(), self.prompts, changed)


class DecodedRows(Dataset[tuple[DecodedPair, str]]):
    """The rows of a table, decoded, by sample key."""

    def __init__(self, rows: TableRows | JoinedRows, config: TrainingConfig) -> None:
        self.rows, self.config, self.framing = rows, config, framing_of(config)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey) -> tuple[DecodedPair, str]:
        """Returns the row, or the next that can be used if it cannot."""
        for number in range(key.number, key.number + MAX_UNUSABLE):
            pair = self.rows[number % len(self.rows)]
            try:
                crop = CENTRE if self.config.center_crop else key.crop
                decoded = decode_pair(pair, self.framing, crop)
            except ValueError as error:
                logger.warning("row %d cannot be used, the next is taken: %s", number % len(self.rows), error)
                continue
            if decoded.lacks_mask:
                logger.warning("row %d has no usable mask; all of its positions count alike", number % len(self.rows))
            mirrored = key.mirrored and self.config.random_flip
            return decoded.mirrored() if mirrored else decoded, str(pair.edit_prompt)
        raise ValueError(
            f"{MAX_UNUSABLE} consecutive rows are unusable, starting at row {key.number}. The log names their errors."
        )

    def collate(self, items: Sequence[tuple[DecodedPair, str]]) -> Decoded:
        """Makes a batch of rows."""
        pairs, prompts = [pair for pair, _ in items], [prompt for _, prompt in items]
        pixels = np.stack([pair.pixels for pair in pairs])
        return Decoded(torch.from_numpy(pixels), sizes_of(pairs, self.config), prompts, changed_of(pairs))


class OnlinePairs:
    """Pairs whose encoders stay in memory."""

    on_host = False

    def __init__(self, rows: TableRows | JoinedRows, config: TrainingConfig, accelerator: Accelerator) -> None:
        device = accelerator.device
        self.dataset, self.config, self.accelerator = DecodedRows(rows, config), config, accelerator
        self.vae = load_encoder(config, device)
        self.encoders = base_architecture(config).load_text_encoders(config, device)
        with torch.no_grad(), autocast_of_step(accelerator):
            self.none = self.encoders.encode([""]).map(lambda values: values.float())
        self.latent_shape = torch.Size(latent_shape(config))
        self._batches: Iterator[Decoded] = iter(())
        self._next: int | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def row_numbers(self) -> Sequence[int]:
        """The row of the data that each pair comes from."""
        return range(len(self))

    @property
    def source_numbers(self) -> NDArray[np.int64]:
        """The source of the data that each pair comes from."""
        rows = self.dataset.rows
        return rows.source_numbers if isinstance(rows, JoinedRows) else np.zeros(len(rows), dtype=np.int64)

    @torch.no_grad()
    def load(self, stream: SampleStream, micro_step: int, draws: StepDraws) -> Batch:
        """Loads the batch of a micro-step; later ones are decoded meanwhile, so the keys were drawn before `draws`."""
        if micro_step != self._next:
            loader = DataLoader(
                self.dataset,
                batch_sampler=stream.keys(micro_step),
                num_workers=self.config.dataloader_num_workers,
                collate_fn=self.dataset.collate,
                pin_memory=self.accelerator.device.type == "cuda",
                generator=torch.Generator(),  # else the workers' seeds, unused, come from the step's own
            )
            self._batches = iter(loader)
        self._next = micro_step + 1
        decoded = next(self._batches)
        with autocast_of_step(self.accelerator):
            mean, deviation, condition = encode_pairs(self.vae, decoded.pixels)
            texts = self.encoders.encode(decoded.prompts)
        return Batch(mean, deviation, condition, texts, decoded.sizes, decoded.changed)
