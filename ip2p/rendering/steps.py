"""What the two sides of a pair share in a step: the whole step, self-attention maps, cross-attention maps, or nothing.

Rows of a batch are laid out [originals, edited] in each guidance half. A pair that shares the whole step has one
trajectory, so only its original is computed. What concerns the captions' words is done in the last half alone, for in
the unconditional one both sides read the empty text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ip2p.records import RenderSpec
from ip2p.rendering.alignment import TokenMap
from ip2p.rendering.attention import CrossSharing, Emphasis, SelfSharing, WatchedWords


@dataclass(frozen=True, slots=True)
class StepRows:
    """Which rows of [originals, edited], 2 N in all, the UNet computes in a step, and what they share."""

    num_halves: int
    computed: Tensor
    """(R,) rows: the N originals, then the edited sides that go their own way."""
    result_of: Tensor
    """(2 N,) for each row the place among `computed` of the prediction that it takes."""
    itself: SelfSharing | None
    """Self-attention of the halves * R computed rows; None where every row takes its own."""
    crossing: Tensor
    """(N,) bool: pairs whose edited sides take cross-attention maps of their originals."""
    emphasised: Tensor
    """(N,) bool: pairs whose new words are weighted."""
    watched: Tensor
    """(N,) bool: pairs whose changed words are looked for."""
    is_blended: Tensor
    """(N,) bool: pairs whose sides are blended after the step."""

    def to(self, device: torch.device) -> StepRows:
        """The same on another device."""
        names = ("computed", "result_of", "crossing", "emphasised", "watched", "is_blended")
        moved = {name: getattr(self, name).to(device) for name in names}
        itself = self.itself and SelfSharing(self.itself.distinct.to(device), self.itself.place.to(device))
        return replace(self, **moved, itself=itself)

    def cross_sharing(self, token_maps: TokenMap) -> CrossSharing | None:
        """What cross-attention shares."""
        pairs = self.crossing.nonzero().flatten()
        if not len(pairs):
            return None
        originals, edited = self._rows_of(pairs)
        return CrossSharing(edited, originals, token_maps.matrix[pairs], token_maps.own[pairs])

    def emphasis(self, token_maps: TokenMap, factors: Tensor) -> Emphasis | None:
        """The weights of new words; `factors` (N,)."""
        pairs = self.emphasised.nonzero().flatten()
        if not len(pairs):
            return None
        return Emphasis(self._rows_of(pairs)[1], 1 + (factors[pairs, None] - 1) * token_maps.new[pairs])

    def watched_words(self, token_maps: TokenMap, max_positions: int) -> WatchedWords | None:
        """Words that are gone in the original rows; new ones in the edited rows and in those they take maps from."""
        pairs = self.watched.nonzero().flatten()
        if not len(pairs):
            return None
        originals, edited = self._rows_of(pairs)
        new, crossing = token_maps.new[pairs], self.crossing[pairs]
        own = torch.where(crossing[:, None], new * token_maps.own[pairs], new)
        taken = torch.einsum("pij,pj->pi", token_maps.matrix[pairs[crossing]], new[crossing])
        edited_slots = pairs + len(self.crossing)
        return WatchedWords(
            rows=torch.cat([originals, edited, originals[crossing]]),
            words=torch.cat([token_maps.gone[pairs], own, taken]),
            slots=torch.cat([pairs, edited_slots, edited_slots[crossing]]),
            max_positions=max_positions,
        )

    def _rows_of(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of the batch of both sides of pairs, in the last half."""
        first = len(self.computed) * (self.num_halves - 1)
        return pairs + first, self.result_of[len(self.crossing) + pairs] + first


def plan_step(specs: Sequence[RenderSpec], step: int, num_steps: int, *, num_halves: int) -> StepRows:
    """The rows of step `step` of 0 … num_steps - 1."""
    num = len(specs)
    apart = [index for index, spec in enumerate(specs) if not is_shared(spec.shared_steps, step, num_steps)]
    result_of = torch.arange(num).repeat(2)
    result_of[[num + index for index in apart]] = torch.arange(num, num + len(apart))

    def pairs_that(rule: Callable[[RenderSpec], bool]) -> Tensor:
        return torch.tensor([index in apart and rule(spec) for index, spec in enumerate(specs)])

    return StepRows(
        num_halves=num_halves,
        computed=torch.cat([torch.arange(num), torch.tensor(apart, dtype=torch.long) + num]),
        result_of=result_of,
        itself=_share_itself([is_shared(specs[index].p2p, step, num_steps) for index in apart], apart, num, num_halves),
        crossing=pairs_that(lambda spec: is_shared(spec.cross_p2p, step, num_steps)),
        emphasised=pairs_that(lambda spec: spec.reweight != 1 and is_shared(spec.reweight_steps, step, num_steps)),
        watched=pairs_that(lambda spec: spec.local_blend > 0),
        is_blended=pairs_that(lambda spec: is_shared(spec.local_blend, num_steps - 1 - step, num_steps)),
    )


def _share_itself(attending: Sequence[bool], apart: Sequence[int], num: int, num_halves: int) -> SelfSharing | None:
    """Edited rows that attend take from their originals, all others from themselves."""
    if not any(attending):
        return None
    own = torch.arange(num, num + len(apart))
    half = torch.cat([torch.arange(num), torch.where(torch.tensor(attending), torch.tensor(apart), own)])
    source = torch.cat([half + len(half) * number for number in range(num_halves)])
    return SelfSharing(*torch.unique(source, return_inverse=True))


def is_shared(fraction: float, step: int, num_steps: int) -> bool:
    """Whether a share of the first `fraction` of the steps still holds in step `step` of 0 … num_steps - 1."""
    return fraction > step / max(1, num_steps - 1)
