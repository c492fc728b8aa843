"""No step of a batch waits for the device: its values are not looked at, and what it needs is there before.

The denoiser is on the meta device, whose tensors have no values: what looks at one fails there, where a GPU would make
the host wait. Copies from the host are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ip2p.models.noise import RowNoise, draw_noise
from ip2p.models.pipelines import load_text_to_image
from ip2p.p2p.sampler import sample_latents
from tests.test_rendering_exact import OPERATORS, with_operator
from tests.test_rendering_sampler import DETERMINISTIC, STOCHASTIC


class FromTheHost(TorchDispatchMode):
    """Counts what comes from the host: copies, and hidden ones, where an operation takes tensors of both.

    A single number of the host is an argument like any other, but for an index.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        from_host = [each for each in given if not each.is_meta]
        is_number = all(not each.ndim for each in from_host) and not any(
            word in str(func) for word in ("index", "copy")
        )
        if from_host and not is_number and any(each.is_meta for each in made):
            self.seen[str(func)] += 1
        return result


def copies(pipeline: Any, name: str, scheduler: str | None, num_steps: int) -> int:
    config, batch = with_operator(OPERATORS[name])
    config = replace(config, num_inference_steps=num_steps, scheduler=scheduler)
    with torch.inference_mode(), FromTheHost() as counted:
        assert sample_latents(pipeline, batch, config).is_meta
    return sum(counted.seen.values())


@pytest.fixture(scope="module")
def pipeline(tiny_sd: Path) -> Any:
    """A pipeline of its own, since the one of the other tests is left where it is."""
    return load_text_to_image(str(tiny_sd), revision=None, variant=None, dtype="float32", device="meta")


@pytest.mark.parametrize("name", OPERATORS)
def test_no_step_looks_at_the_device_whatever_a_pair_shares(pipeline: Any, name: str) -> None:
    config, batch = with_operator(OPERATORS[name])
    with torch.inference_mode():
        assert sample_latents(pipeline, batch, config).is_meta


def copies_per_step(pipeline: Any, scheduler: str) -> float:
    """Copies that a step adds where pairs share nothing: the rows of the steps are planned before the first."""
    few, many = (copies(pipeline, "nothing", scheduler, num) for num in (4, 8))
    return (many - few) / 4


@pytest.mark.parametrize("scheduler", sorted({*STOCHASTIC, *DETERMINISTIC}))
def test_a_step_copies_at_most_its_noise(pipeline: Any, scheduler: str) -> None:
    assert copies_per_step(pipeline, scheduler) <= (scheduler in STOCHASTIC) * 2


def test_copies_are_seen() -> None:
    with FromTheHost() as counted:
        torch.zeros(3).to("meta")
        torch.zeros(3, device="meta")[torch.tensor([1])]
    assert counted.seen.total() >= 2


def test_noise_of_both_sides_is_drawn_once_and_as_diffusers_draws_it() -> None:
    seeds, shape = (3, 4, 5), (4, 8, 8)
    pair = [torch.Generator().manual_seed(seed) for seed in seeds] * 2
    alone = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(2):
        expected = torch.stack([torch.randn(shape, generator=each) for each in alone]).repeat(2, 1, 1, 1)
        assert torch.equal(draw_noise(pair, shape, torch.device("cpu")), expected)
    expected = torch.stack([torch.randn(shape, generator=each) for each in alone])
    with RowNoise(pair, torch.device("cpu")):
        rows = [torch.randn((1, *shape), generator=each, dtype=torch.float32) for each in pair]
        other = torch.randn(3)
    assert torch.equal(torch.cat(rows), expected.repeat(2, 1, 1, 1)) and len(other) == 3
