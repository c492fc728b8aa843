"""What the two sides of a pair share in a step: the whole step, the self-attention maps, or nothing.

Rows of a batch are laid out [originals, edited] in each guidance half. A pair that shares the whole step has one
trajectory, so only its original is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ip2p.records import RenderSpec


@dataclass(frozen=True, slots=True)
class StepRows:
    """Which rows of [originals, edited], 2 N in all, the UNet computes in a step."""

    computed: Tensor
    """(R,) rows: the N originals, then the edited sides that go their own way."""
    result_of: Tensor
    """(2 N,) for each row the place among `computed` of the prediction that it takes."""
    attention_source: Tensor | None
    """(halves * R,) for each computed row whose queries and keys it takes; None where every row takes its own."""

    def to(self, device: torch.device) -> StepRows:
        """The same on another device."""
        source = self.attention_source
        return StepRows(
            self.computed.to(device), self.result_of.to(device), None if source is None else source.to(device)
        )


def plan_step(specs: Sequence[RenderSpec], step: int, num_steps: int, *, num_halves: int) -> StepRows:
    """The rows of step `step` of 0 … num_steps - 1."""
    num = len(specs)
    apart = [index for index, spec in enumerate(specs) if not is_shared(spec.shared_steps, step, num_steps)]
    result_of = torch.arange(num).repeat(2)
    result_of[[num + index for index in apart]] = torch.arange(num, num + len(apart))
    attending = [is_shared(specs[index].p2p, step, num_steps) for index in apart]
    source = None
    if any(attending):
        own = torch.arange(num, num + len(apart))
        edited = torch.where(torch.tensor(attending), torch.tensor(apart), own)
        half = torch.cat([torch.arange(num), edited])
        source = torch.cat([half + len(half) * number for number in range(num_halves)])
    computed = torch.cat([torch.arange(num), torch.tensor(apart, dtype=torch.long) + num])
    return StepRows(computed, result_of, source)


def is_shared(fraction: float, step: int, num_steps: int) -> bool:
    """Whether a share of the first `fraction` of the steps still holds in step `step` of 0 … num_steps - 1."""
    return fraction > step / max(1, num_steps - 1)
