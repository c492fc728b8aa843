"""Muon against its definition by singular values, and against AdamW where it must be AdamW."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ip2p.config import TrainingConfig
from ip2p.models.stable_diffusion import ARCHITECTURE as BASE
from ip2p.training.optimizer import ROUNDS, SLACK, Muon, new_optimizer, orthogonalise
from tests.tiny import tiny_unet


def by_singular_values(matrix: Tensor) -> Tensor:
    """What the rounds do to each singular value, done to it directly."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / (values.pow(4).sum().sqrt() * SLACK).sqrt()
    for a, b, c in ROUNDS:
        values = a * values + b * values**3 + c * values**5
    orthogonal: Tensor = (left @ values.diag() @ right).float()
    return orthogonal


def train(optimizer: torch.optim.Optimizer, module: nn.Module, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter, memory_format=torch.contiguous_format)
        optimizer.step()


def muon_of(module: nn.Module, *, orthogonal: bool = True) -> Muon:
    return Muon([{"params": list(module.parameters()), "orthogonal": orthogonal}], lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize("shape", [(5, 5), (4, 8), (8, 4), (4, 9), (4, 36), (36, 4)])
def test_orthogonalising_bends_the_singular_values_and_keeps_the_vectors(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    found = orthogonalise(matrices)
    for matrix, other in zip(matrices, found, strict=True):
        torch.testing.assert_close(other, by_singular_values(matrix), atol=2e-5, rtol=1e-4)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(8, 4, 36)))
    assert values.min() > 0.7 and values.max() < 1.3


def test_the_rounds_bring_all_but_the_smallest_values_near_one_and_lift_those() -> None:
    values = torch.logspace(-5, 0, 2001, dtype=torch.double)
    bent = values.clone()
    for a, b, c in ROUNDS:
        bent = a * bent + b * bent**3 + c * bent**5
    large = values >= 0.005
    assert bent[large].min() > 0.91 and bent[large].max() < 1.1
    assert (bent[~large] / values[~large]).min() > 180
    assert (bent > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 64), (64, 576), (256, 64)])
def test_a_gradient_of_few_directions_does_not_blow_up(shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(shape[0], 3, generator=generator), torch.randn(3, shape[1], generator=generator)
    values = torch.linalg.svdvals(orthogonalise((1e-4 * left @ right)[None], dtype)[0])
    assert values[:3].min() > 0.8 and values.max() < 1.3
    assert values[3:].max() < 0.3


def test_a_gradient_of_any_magnitude_is_orthogonalised_alike() -> None:
    matrices = torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        expected = orthogonalise(matrices, dtype)
        for size in (2.0**-30, 2.0**20):
            torch.testing.assert_close(orthogonalise(matrices * size, dtype), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", [(32, 32), (32, 48), (16, 144)])
def test_bfloat16_keeps_the_directions(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    exact, found = orthogonalise(matrices), orthogonalise(matrices, torch.bfloat16)
    assert found.dtype == torch.float32
    likeness = nn.functional.cosine_similarity(found.flatten(1), exact.flatten(1))
    assert likeness.min() > 0.995
    assert torch.linalg.svdvals(found).max() < 1.35


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not orthogonalise(torch.zeros(1, 3, 5)).any()
    assert not orthogonalise(torch.zeros(1, 3, 7)).any()


def test_muon_takes_a_convolution_for_the_matrix_of_its_outputs_in_any_memory_format() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 8, 3, bias=False)
    linear = nn.Linear(27, 8, bias=False)
    with torch.no_grad():
        linear.weight.copy_(convolution.weight.flatten(1))
    last = copy.deepcopy(convolution).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = []
    for module in (convolution, last, linear):
        optimizer, weight = muon_of(module), next(module.parameters())
        for step in range(4):
            gradient = torch.randn(8, 27, generator=torch.Generator().manual_seed(step))
            weight.grad = gradient.view(weight.shape)
            optimizer.step()
        found.append(weight.detach().flatten(1))
    torch.testing.assert_close(found[0], found[2], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[1], found[2], atol=1e-6, rtol=1e-5)


def test_a_first_step_of_muon_is_as_large_as_adamws() -> None:
    torch.manual_seed(0)
    weights = nn.Linear(96, 64, bias=False)
    before = weights.weight.detach().clone()
    train(Muon([{"params": list(weights.parameters()), "orthogonal": True}], lr=1e-3), weights, range(1))
    moved = (weights.weight.detach() - before).square().mean().sqrt()
    assert moved == pytest.approx(0.2e-3, rel=0.2)  # Liu et al., section 2.2


def test_muon_without_matrices_is_adamw() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    theirs = copy.deepcopy(ours)
    train(muon_of(ours, orthogonal=False), ours, range(5))
    train(torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1), theirs, range(5))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("fused", [False, True])
def test_a_saved_and_loaded_muon_goes_on_as_if_never_stopped(*, fused: bool) -> None:
    torch.manual_seed(0)
    whole = tiny_unet().to(memory_format=torch.channels_last)
    stopped = copy.deepcopy(whole)
    config = TrainingConfig(optim="muon", learning_rate_conv_in=0.01)
    optimizer = new_optimizer(whole, BASE, config, fused=fused)
    train(optimizer, whole, range(4))
    first = new_optimizer(stopped, BASE, config, fused=fused)
    train(first, stopped, range(2))
    second = new_optimizer(stopped, BASE, config, fused=fused)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, stopped, range(2, 4))
    for one, other in zip(whole.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(one, other)


def test_parameters_without_a_gradient_stay_as_they_are() -> None:
    weights = nn.Linear(4, 4)
    before = copy.deepcopy(weights)
    muon_of(weights).step()
    assert all(torch.equal(one, other) for one, other in zip(weights.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("optim", ["adamw", "muon"])
@pytest.mark.parametrize("rate", [None, 0.01])
def test_every_parameter_is_trained_once_and_only_inner_matrices_by_muon(optim: str, rate: float | None) -> None:
    unet = tiny_unet(in_channels=8)
    config = TrainingConfig(optim=optim, learning_rate_conv_in=rate)  # type: ignore[arg-type]
    optimizer = new_optimizer(unet, BASE, config, fused=False)
    trained = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(trained) == sorted(id(parameter) for parameter in unet.parameters())
    rates = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
    assert rates[id(unet.conv_in.weight)] == (rate or config.learning_rate)
    orthogonal = {id(p) for group in optimizer.param_groups if group.get("orthogonal") for p in group["params"]}
    edges = {id(p) for layer in (unet.conv_in, unet.conv_out) for p in layer.parameters()}
    inner = {id(p) for p in unet.parameters() if p.ndim >= 2} - edges
    assert orthogonal == (inner if optim == "muon" else set())
