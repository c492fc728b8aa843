"""What the two sides of a pair share in a step: the whole step, self-attention maps, cross-attention maps, or nothing.

Rows of a batch are laid out [originals, edited] in each guidance half. A pair that shares the whole step has one
trajectory, so only its original is computed. Sharing by words happens in the last half alone: in the unconditional one
both sides read the empty text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p.config import RenderingConfig
from ip2p.models.texts import TextEncoders
from ip2p.p2p.alignment import TokenMap, align_captions
from ip2p.p2p.attention import CrossSharing, Emphasis, SelfSharing, SharedAttention, WatchedWords
from ip2p.records import Candidate, RenderSpec


@dataclass(frozen=True, slots=True)
class PairRows:
    """K pairs of a batch, and their rows in the last of the halves that are computed."""

    pairs: Tensor
    """(K,) their numbers."""
    originals: Tensor
    """(K,) rows."""
    edited: Tensor
    """(K,) rows."""


@dataclass(frozen=True, slots=True)
class WatchedRows:
    """Where the changed words of K pairs are looked for."""

    pairs: Tensor
    """(K,) their numbers."""
    takes: Tensor
    """(K,) bool: pairs whose edited sides take cross-attention maps of their originals."""
    taking: Tensor
    """(T,) the places of those among the K."""
    rows: Tensor
    """(2 K + T,) the rows of the originals, of the edited sides, and of the originals that maps are taken from."""
    slots: Tensor
    """(2 K + T,) the rows of `PlacesOfWords` under which they are summed."""


@dataclass(frozen=True, slots=True)
class StepRows:
    """Which rows of [originals, edited], 2 N in all, the denoiser computes in a step, and what they share.

    What is None is not shared by any pair.
    """

    computed: Tensor
    """(R,) rows: the N originals, then the edited sides that do not share the whole step."""
    result_of: Tensor
    """(2 N,) for each row the place of its prediction among `computed`."""
    itself: SelfSharing | None
    """Self-attention of the halves * R computed rows."""
    crossing: PairRows | None
    """Pairs whose edited sides take cross-attention maps of their originals."""
    emphasised: PairRows | None
    """Pairs whose new words are weighted."""
    watched: WatchedRows | None
    """Pairs whose changed words are looked for."""
    is_blended: Tensor | None
    """(N,) bool: pairs whose sides are blended after the step."""

    def cross_sharing(self, token_maps: TokenMap) -> CrossSharing | None:
        """Returns what cross-attention shares."""
        if (taking := self.crossing) is None:
            return None
        matrix, own = token_maps.matrix[taking.pairs], token_maps.own[taking.pairs]
        return CrossSharing(taking.edited, taking.originals, matrix, own)

    def emphasis(self, token_maps: TokenMap, factors: Tensor) -> Emphasis | None:
        """Returns the weights of new words, from `factors` (N,)."""
        if (weighted := self.emphasised) is None:
            return None
        pairs = weighted.pairs
        return Emphasis(weighted.edited, 1 + (factors[pairs, None] - 1) * token_maps.new[pairs])

    def watched_words(self, token_maps: TokenMap, max_positions: int) -> WatchedWords | None:
        """Marks words gone from the original rows, and new ones in the edited rows and in those they take maps from."""
        if (watched := self.watched) is None:
            return None
        pairs, taking = watched.pairs, watched.taking
        new = token_maps.new[pairs]
        own = torch.where(watched.takes[:, None], new * token_maps.own[pairs], new)
        taken = torch.einsum("pij,pj->pi", token_maps.matrix[pairs[taking]], new[taking])
        words = torch.cat([token_maps.gone[pairs], own, taken])
        return WatchedWords(rows=watched.rows, words=words, slots=watched.slots, max_positions=max_positions)


def plan_steps(specs: Sequence[RenderSpec], num_steps: int, *, num_halves: int, device: torch.device) -> list[StepRows]:
    """Plans all steps of a batch; the rows are on the device before the first, so that no step waits for a copy."""
    shares = [StepShares.of(specs, step, num_steps) for step in range(num_steps)]
    plans = {each: _moved(each.plan(num_halves), device) for each in dict.fromkeys(shares)}
    return [plans[each] for each in shares]


class StepShares(NamedTuple):
    """Marks the N pairs that do something in a step; pairs that share the whole step share nothing else."""

    apart: tuple[bool, ...]
    """Pairs that do not share the whole step."""
    attending: tuple[bool, ...]
    """Pairs whose edited sides take self-attention maps of their originals."""
    crossing: tuple[bool, ...]
    """The same of cross-attention maps."""
    emphasised: tuple[bool, ...]
    """Pairs whose new words are weighted."""
    watched: tuple[bool, ...]
    """Pairs whose changed words are looked for."""
    blended: tuple[bool, ...]
    """Pairs whose sides are blended after the step."""

    @classmethod
    def of(cls, specs: Sequence[RenderSpec], step: int, num_steps: int) -> StepShares:
        """Reads step `step` of 0 … num_steps - 1 off the pairs' specs."""

        def marks(rule: Callable[[RenderSpec], bool]) -> tuple[bool, ...]:
            return tuple(map(rule, specs))

        return cls(
            apart=marks(lambda spec: not is_shared(spec.shared_steps, step, num_steps)),
            attending=marks(lambda spec: is_shared(spec.p2p, step, num_steps)),
            crossing=marks(lambda spec: is_shared(spec.cross_p2p, step, num_steps)),
            emphasised=marks(lambda spec: spec.reweight != 1 and is_shared(spec.reweight_steps, step, num_steps)),
            watched=marks(lambda spec: spec.local_blend > 0),
            blended=marks(lambda spec: is_shared(spec.local_blend, num_steps - 1 - step, num_steps)),
        )

    def plan(self, num_halves: int) -> StepRows:
        """Returns the rows of the step, on the host."""
        num = len(self.apart)
        apart = [pair for pair in range(num) if self.apart[pair]]
        places = {pair: num + place for place, pair in enumerate(apart)}
        first = (num + len(apart)) * (num_halves - 1)

        def rows_of(marks: Sequence[bool]) -> PairRows | None:
            pairs = [pair for pair in apart if marks[pair]]
            if not pairs:
                return None
            numbers, edited = torch.tensor(pairs), torch.tensor([places[pair] for pair in pairs])
            return PairRows(numbers, numbers + first, edited + first)

        blended = [pair in places and self.blended[pair] for pair in range(num)]
        return StepRows(
            computed=torch.tensor([*range(num), *(pair + num for pair in apart)]),
            result_of=torch.tensor([*range(num), *(places.get(pair, pair) for pair in range(num))]),
            itself=_share_itself([self.attending[pair] for pair in apart], apart, num, num_halves),
            crossing=rows_of(self.crossing),
            emphasised=rows_of(self.emphasised),
            watched=_watch(rows_of(self.watched), self.crossing),
            is_blended=torch.tensor(blended) if any(blended) else None,
        )


def _watch(watched: PairRows | None, crosses: Sequence[bool]) -> WatchedRows | None:
    """Adds to pairs whose words are looked for the rows of the originals that they take maps from."""
    if watched is None:
        return None
    takes = torch.tensor([crosses[pair] for pair in watched.pairs.tolist()])
    taking, edited_slots = takes.nonzero().flatten(), watched.pairs + len(crosses)
    rows = torch.cat([watched.originals, watched.edited, watched.originals[taking]])
    slots = torch.cat([watched.pairs, edited_slots, edited_slots[taking]])
    return WatchedRows(watched.pairs, takes, taking, rows, slots)


def _share_itself(attending: Sequence[bool], apart: Sequence[int], num: int, num_halves: int) -> SelfSharing | None:
    """Lets edited rows that attend take from their originals, and all others from themselves."""
    if not any(attending):
        return None
    own = torch.arange(num, num + len(apart))
    half = torch.cat([torch.arange(num), torch.where(torch.tensor(attending), torch.tensor(apart), own)])
    source = torch.cat([half + len(half) * number for number in range(num_halves)])
    return SelfSharing(*torch.unique(source, return_inverse=True))


Rows = TypeVar("Rows", StepRows, PairRows, WatchedRows, SelfSharing)


def _moved(rows: Rows, device: torch.device) -> Rows:
    """Returns the same rows on a device, without waiting for it."""
    parts = {field.name: getattr(rows, field.name) for field in fields(rows)}
    moved: dict[str, Any] = {
        name: part.to(device, non_blocking=True) if isinstance(part, Tensor) else part and _moved(part, device)
        for name, part in parts.items()
    }
    return replace(rows, **moved)


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


def blend(latents: Tensor, is_blended: Tensor, places: PlacesOfWords | None, threshold: float) -> Tensor:
    """Blends (2 N, C, h, w) latents of the marked pairs: where one may not differ, its edited side gets the original's.

    A pair may differ at the places of its words or, if they are not looked for, where it differs already.
    """
    originals, edited = latents.chunk(2)
    size = (latents.shape[2], latents.shape[3])
    may_differ = find_differences(latents, threshold) if places is None else places.mask(size, threshold)
    may_differ = may_differ | ~is_blended.view(-1, 1, 1, 1)
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
