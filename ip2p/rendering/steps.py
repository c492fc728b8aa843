"""What the two sides of a pair share in a step: the whole step, self-attention maps, cross-attention maps, or nothing.

Rows of a batch are laid out [originals, edited] in each guidance half. A pair that shares the whole step has one
trajectory, so only its original is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ip2p.records import RenderSpec
from ip2p.rendering.alignment import TokenMap
from ip2p.rendering.attention import CrossSharing


@dataclass(frozen=True, slots=True)
class StepRows:
    """Which rows of [originals, edited], 2 N in all, the UNet computes in a step."""

    computed: Tensor
    """(R,) rows: the N originals, then the edited sides that go their own way."""
    result_of: Tensor
    """(2 N,) for each row the place among `computed` of the prediction that it takes."""
    attention_source: Tensor | None
    """(halves * R,) for each computed row whose queries and keys it takes; None where every row takes its own."""

    crossing: tuple[int, ...] = ()
    """Pairs, of 0 … N - 1, whose edited sides take cross-attention maps of their originals."""

    def to(self, device: torch.device) -> StepRows:
        """The same on another device."""
        source = self.attention_source
        moved = None if source is None else source.to(device)
        return replace(
            self, computed=self.computed.to(device), result_of=self.result_of.to(device), attention_source=moved
        )

    def cross_sharing(self, token_maps: TokenMap, *, num_halves: int) -> CrossSharing | None:
        """What cross-attention shares: only in the last half, for the unconditional one has one text on both sides."""
        if not self.crossing:
            return None
        pairs = torch.tensor(self.crossing, device=self.computed.device)
        num_rows, num = len(self.computed), len(self.result_of) // 2
        before = num_rows * (num_halves - 1)
        return CrossSharing(
            rows=self.result_of[num + pairs] + before,
            sources=pairs + before,
            token_maps=token_maps.matrix[pairs],
            own=token_maps.own[pairs],
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
    crossing = tuple(index for index in apart if is_shared(specs[index].cross_p2p, step, num_steps))
    return StepRows(computed, result_of, source, crossing)


def is_shared(fraction: float, step: int, num_steps: int) -> bool:
    """Whether a share of the first `fraction` of the steps still holds in step `step` of 0 … num_steps - 1."""
    return fraction > step / max(1, num_steps - 1)
