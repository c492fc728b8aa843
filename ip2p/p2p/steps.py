"""What the two sides of a pair share in a step: the whole step, self-attention maps, cross-attention maps, or nothing.

Rows of a batch are laid out [originals, edited] in each guidance half. A pair that shares the whole step has one
trajectory, so only its original is computed. Sharing by words happens in the last half alone: in the unconditional one
both sides read the empty text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p.config import RenderingConfig
from ip2p.models.texts import TextEncoders
from ip2p.p2p.alignment import TokenMap, align_captions
from ip2p.p2p.attention import CrossSharing, Emphasis, SelfSharing, SharedAttention, WatchedWords
from ip2p.records import Candidate, RenderSpec


@dataclass(frozen=True, slots=True)
class StepRows:
    """Which rows of [originals, edited], 2 N in all, the denoiser computes in a step, and what they share."""

    num_halves: int
    computed: Tensor
    """(R,) rows: the N originals, then the edited sides that do not share the whole step."""
    result_of: Tensor
    """(2 N,) for each row the place of its prediction among `computed`."""
    itself: SelfSharing | None
    """Self-attention of the halves * R computed rows; None if every row takes its own."""
    crossing: Tensor
    """(N,) bool: pairs whose edited sides take cross-attention maps of their originals."""
    emphasised: Tensor
    """(N,) bool: pairs whose new words are weighted."""
    watched: Tensor
    """(N,) bool: pairs whose changed words are looked for."""
    is_blended: Tensor
    """(N,) bool: pairs whose sides are blended after the step."""

    def to(self, device: torch.device) -> StepRows:
        """Returns the same rows on another device."""
        names = ("computed", "result_of", "crossing", "emphasised", "watched", "is_blended")
        moved = {name: getattr(self, name).to(device) for name in names}
        itself = self.itself and SelfSharing(self.itself.distinct.to(device), self.itself.place.to(device))
        return replace(self, **moved, itself=itself)

    def cross_sharing(self, token_maps: TokenMap) -> CrossSharing | None:
        """Returns what cross-attention shares; None if no pair does."""
        pairs = self.crossing.nonzero().flatten()
        if not len(pairs):
            return None
        originals, edited = self._rows_of(pairs)
        return CrossSharing(edited, originals, token_maps.matrix[pairs], token_maps.own[pairs])

    def emphasis(self, token_maps: TokenMap, factors: Tensor) -> Emphasis | None:
        """Returns the weights of new words, from `factors` (N,); None if no pair has any."""
        pairs = self.emphasised.nonzero().flatten()
        if not len(pairs):
            return None
        return Emphasis(self._rows_of(pairs)[1], 1 + (factors[pairs, None] - 1) * token_maps.new[pairs])

    def watched_words(self, token_maps: TokenMap, max_positions: int) -> WatchedWords | None:
        """Marks words gone from the original rows, and new ones in the edited rows and in those they take maps from."""
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
        """Returns the rows of the batch of both sides of pairs, in the last half."""
        first = len(self.computed) * (self.num_halves - 1)
        return pairs + first, self.result_of[len(self.crossing) + pairs] + first


def plan_step(specs: Sequence[RenderSpec], step: int, num_steps: int, *, num_halves: int) -> StepRows:
    """Plans step `step` of 0 … num_steps - 1."""
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
    """Lets edited rows that attend take from their originals, and all others from themselves."""
    if not any(attending):
        return None
    own = torch.arange(num, num + len(apart))
    half = torch.cat([torch.arange(num), torch.where(torch.tensor(attending), torch.tensor(apart), own)])
    source = torch.cat([half + len(half) * number for number in range(num_halves)])
    return SelfSharing(*torch.unique(source, return_inverse=True))


def is_shared(fraction: float, step: int, num_steps: int) -> bool:
    """Returns True if step `step` of 0 … num_steps - 1 is in the first `fraction` of the steps."""
    return fraction > step / max(1, num_steps - 1)


@dataclass(frozen=True, slots=True)
class WordSharing:
    """What the N pairs of a batch share word by word."""

    token_maps: TokenMap
    factors: Tensor
    """(N,) on the maps of new words."""
    places: PlacesOfWords
    config: RenderingConfig
    offset: int
    """The place of the captions' first token among a text's states."""

    @classmethod
    def of(
        cls,
        encoders: TextEncoders,
        batch: Sequence[Candidate],
        config: RenderingConfig,
        device: torch.device,
    ) -> WordSharing | None:
        """Builds it for a batch; None if no pair uses word-level sharing."""
        specs = [candidate.spec for candidate in batch]
        if not any(uses_words(spec, config) for spec in specs):
            return None
        factors = torch.tensor([spec.reweight for spec in specs], device=device)
        tokenizer, length = encoders.tokenizers[0], encoders.lengths[0]
        token_maps = align_captions(tokenizer, batch, config.cross_alignment, device, length)
        return cls(token_maps, factors, PlacesOfWords(len(batch)), config, encoders.offset)

    def before_step(self, plan: StepRows, shared: SharedAttention) -> None:
        """Sets what the attention shares in the step."""
        shared.cross = plan.cross_sharing(self.token_maps)
        shared.emphasis = plan.emphasis(self.token_maps, self.factors)
        if not self.config.blend_by_difference:
            shared.watched = plan.watched_words(self.token_maps, self.config.blend_max_positions)


def uses_words(spec: RenderSpec, config: RenderingConfig) -> bool:
    """Returns True if a pair uses word-level sharing."""
    blends = spec.local_blend > 0 and not config.blend_by_difference
    return spec.cross_p2p > 0 or blends or (spec.reweight != 1 and spec.reweight_steps > 0)


def blend(latents: Tensor, plan: StepRows, places: PlacesOfWords | None, threshold: float) -> Tensor:
    """Blends (2 N, C, h, w) latents: where a pair may not differ, its edited side gets the original's latents.

    A pair may differ at the places of its words or, if they are not looked for, where it differs already.
    """
    originals, edited = latents.chunk(2)
    size = (latents.shape[2], latents.shape[3])
    may_differ = find_differences(latents, threshold) if places is None else places.mask(size, threshold)
    may_differ = may_differ | ~plan.is_blended.view(-1, 1, 1, 1)
    return torch.cat([originals, torch.where(may_differ, edited, originals)])


def find_differences(latents: Tensor, threshold: float) -> Tensor:
    """Returns (N, 1, h, w) bool: true near places where the two sides differ by a share of their largest difference.

    Both sides get the same noise in each step, so that what differs is what was drawn.
    """
    originals, edited = latents.chunk(2)
    difference = (edited - originals).abs().mean(1, keepdim=True)
    smooth = F.avg_pool2d(difference, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2, count_include_pad=False)
    differs = smooth > threshold * smooth.amax(dim=(2, 3), keepdim=True)
    return F.max_pool2d(differs.float(), NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2) > 0


NEIGHBOURHOOD = 3
"""Each place takes the largest value in a square of this many places around it."""


class PlacesOfWords:
    """Finds the places of the changed words of N pairs, for local blend (Hertz et al., 2022, section 3.2).

    A place belongs to a word if the cross-attention to it, summed over the steps so far and the layers of one
    resolution, exceeds a share of its maximum. Words of the original are looked for in its maps, words of the edited
    caption in the edited side's, as they are once shared. Rows 0 … N - 1 hold the sums of the originals' words that are
    gone, the rows after them those of the edited captions' new words.
    """

    def __init__(self, num_pairs: int) -> None:
        self._num = num_pairs
        self._sums: dict[int, Tensor] = {}

    def add(self, watched: WatchedWords) -> None:
        """Adds a step's maps."""
        for positions, maps in watched.seen.items():
            sums = self._sums.setdefault(positions, maps.new_zeros(2 * self._num, positions))
            sums.index_add_(0, watched.slots, maps)

    def mask(self, size: tuple[int, int], threshold: float) -> Tensor:
        """Returns (N, 1, h, w) bool at the latents' size: true at places where a pair's sides may differ."""
        if not self._sums:
            raise ValueError(
                "local blend finds no layer with few enough positions. Raise rendering.blend_max_positions."
            )
        positions = max(self._sums)
        height, width = grid_of(positions, size)
        maps = self._sums[positions].view(-1, 1, height, width)
        maps = F.max_pool2d(maps, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2)
        maps = F.interpolate(maps, size=size)
        highest = maps.amax(dim=(2, 3), keepdim=True)
        is_word = (maps > threshold * highest) & (highest > 0)
        return is_word[: self._num] | is_word[self._num :]


def grid_of(positions: int, size: tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of a layer with this many positions, halved as often as need be from `size`."""
    height, width = size
    while height * width > positions:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return height, width
