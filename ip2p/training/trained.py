"""Holds all that a step of the training changes: weights, average, optimizer and schedule, whole or in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from ip2p.models.architecture import Architecture
from ip2p.training.sharding import Parts


@dataclass(frozen=True, slots=True)
class Trained:
    """All that a step changes."""

    base: Architecture
    denoiser: ModelMixin
    average: ModelMixin | nn.ParameterList | None
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: GradScaler | None
    is_lora: bool = False
    """Adapters and the widened layer are trained; the rest is the base's and is not saved."""
    parts: Parts | None = None
    """How the weights are split over the processes; the average then is a list of parts."""
    averages_itself: bool = False
    """Whether the optimizer keeps an average of its own, which is exported."""

    def parts_of(self, network: nn.Module) -> list[Tensor]:
        """Returns this process's parts of the denoiser or of its average."""
        if self.parts is not None and network is self.denoiser:
            return self.parts.masters()
        return list(network.parameters())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the average that the optimizer keeps itself, if it does, into the denoiser for a while.

        Afterwards the weights are the same to the bit; the optimizer's own way back would round them.
        """
        if not self.averages_itself:
            yield
            return
        optimizer: Any = self.optimizer
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        kept = [weight.detach().clone() for weight in weights]
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()
            with torch.no_grad():
                for weight, value in zip(weights, kept, strict=True):
                    weight.copy_(value)

    def editor(self, *, is_main: bool) -> ModelMixin | None:
        """Returns what is exported in the main process, within `averaged`; all take part.

        It is the average if there is one.
        """
        return self.whole(self.average or self.denoiser, is_main=is_main)

    def whole(self, network: nn.Module, *, is_main: bool) -> ModelMixin | None:
        """Returns the denoiser or its average in the main process, None in others; all take part."""
        if self.parts is None:
            return network if is_main else None
        return self.parts.whole(self.parts_of(network), is_main=is_main)

    def states(self, *, is_main: bool) -> dict[str, Any] | None:
        """Returns the optimizer's state in the main process, None in others; all take part if it is split."""
        if self.parts is None:
            return self.optimizer.state_dict() if is_main else None
        return self.parts.whole_states(is_main=is_main)
