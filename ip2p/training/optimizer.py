"""Assigns optimizers to parameters: AdamW, Prodigy or schedule-free AdamW for all, or Muon for the inner matrices.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest matrix with all singular values alike, so that the
many small directions of a gradient count as much as its few large ones. A convolution is a matrix of out x (in kh kw).
Steps are scaled to the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2), so that one
learning rate serves both. torch's own Muon takes linear layers only. Prodigy (Mishchenko and Defazio, 2023) and
schedule-free AdamW (Defazio et al., 2024) are their authors' own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ip2p.config import TrainingConfig
from ip2p.models.architecture import Architecture

logger = logging.getLogger(__name__)

ROUNDS = (
    (8.1835, -23.4690, 17.2445),
    (3.9196, -2.9242, 0.5596),
    (3.1848, -2.3881, 0.4987),
    (2.1965, -1.5738, 0.4086),
)
"""A quintic for each round, a x + b x^3 + c x^5, each the best for what the one before leaves (Amsel et al. 2025, "The
Polar Express"). They bring singular values from 0.005 to 1 to 0.91 to 1.10, and multiply smaller ones by 224."""
SLACK = 1.02
"""How far rounding may take a singular value above its bound."""
ELONGATED = 2
"""Ratio of the sides above which the rounds cost less on the Gram matrix."""


KINDS = ("orthogonal", "d", "train_mode")
"""Settings of a group that tell Muon, Prodigy and schedule-free AdamW from AdamW in a checkpoint."""
PACKAGES = {"prodigy": "prodigyopt", "schedule_free": "schedulefree"}
LEAST_FACTOR = 0.1
"""Below it, a `learning_rate` was probably meant for another optimizer than Prodigy."""


def check_optimizer(config: TrainingConfig) -> None:
    """Raises ValueError, before the training starts, if the config's optimizer is not installed."""
    package = PACKAGES.get(config.optim)
    if package and importlib.util.find_spec(package) is None:
        raise ValueError(f"optim {config.optim} needs {package}, which is missing. Run: pip install 'ip2p[optimizers]'")
    if config.optim == "prodigy" and config.learning_rate < LEAST_FACTOR:
        logger.warning(
            "prodigy multiplies the rate that it finds by learning_rate, which is %g; 1 is usual", config.learning_rate
        )


def new_optimizer(
    denoiser: nn.Module,
    base: Architecture,
    config: TrainingConfig,
    *,
    fused: bool,
    matmul: torch.dtype = torch.float32,
) -> Optimizer:
    """Builds the config's optimizer, its matrix products in `matmul`; the widened layer may have its own rate.

    First and last layers stay with AdamW, as Muon's authors advise.
    """
    first: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in denoiser.named_parameters():
        if not parameter.requires_grad:
            continue
        if config.learning_rate_conv_in is not None and base.widened and name.startswith(f"{base.widened}."):
            first.append(parameter)
        elif config.optim == "muon" and parameter.ndim >= 2 and not name.startswith(base.edges):
            matrices.append(parameter)
        else:
            others.append(parameter)
    groups: list[dict[str, object]] = [
        {"params": others},
        {"params": first, "lr": config.learning_rate_conv_in},
        {"params": matrices, "orthogonal": True},
    ]
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    filled = [group for group in groups if group["params"]]
    if config.optim == "muon":
        return Muon(filled, matmul=matmul, fused=fused, **options)
    if config.optim == "prodigy":
        from prodigyopt import Prodigy

        with contextlib.redirect_stdout(io.StringIO()):  # it says that its weight decay is decoupled
            prodigy: Optimizer = Prodigy(filled, use_bias_correction=True, safeguard_warmup=True, **options)
        return prodigy
    if config.optim == "schedule_free":
        from schedulefree import AdamWScheduleFree

        warmup = config.lr_warmup_steps if config.lr_scheduler == "constant_with_warmup" else 0
        schedule_free = AdamWScheduleFree(filled, warmup_steps=warmup, **options)
        schedule_free.train()
        return schedule_free  # type: ignore[no-any-return]
    if config.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            logger.warning("AdamW keeps its states in 32 bits: bitsandbytes is missing. Run: pip install bitsandbytes")
        else:
            optimizer: AdamW = AdamW8bit(filled, **options)
            return optimizer
    return AdamW(filled, fused=fused, **options)


class Muon(AdamW):
    """AdamW, but for the groups marked `orthogonal`, whose parameters have two dimensions or more."""

    def __init__(
        self,
        params: list[dict[str, object]],
        *,
        momentum: float = 0.95,
        matmul: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        super().__init__([{"orthogonal": False, **group} for group in params], **options)
        self._step_supports_amp_scaling = False  # as AdamW's fused kernel does, but not the matrices' steps
        self.momentum = momentum
        self.matmul = matmul

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step of every group."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            loss: float | None = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        parameters: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, lookahead in zip(parameters, self._lookaheads(parameters), strict=True):
            order = _order(parameter)
            matrix = lookahead.permute(order).flatten(1)
            by_shape[matrix.shape].append((parameter.permute(order), matrix))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for shape, members in by_shape.items():
            rate = group["lr"] * 0.2 * max(shape) ** 0.5
            updates = orthogonalise(torch.stack([matrix for _, matrix in members]), self.matmul)
            for (weights, _), update in zip(members, updates, strict=True):
                weights.add_(update.view(weights.shape), alpha=-rate)

    def _lookaheads(self, parameters: list[Tensor]) -> tuple[Tensor, ...]:
        """Applies Nesterov's momentum. AdamW looks for the count of steps when a state is loaded."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] |= {"step": torch.zeros(()), "momentum_buffer": torch.zeros_like(parameter)}
        states = [self.state[parameter] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages: list[Tensor] = [state["momentum_buffer"] for state in states]
        torch._foreach_add_([state["step"] for state in states], 1)
        torch._foreach_lerp_(averages, gradients, 1 - self.momentum)
        return torch._foreach_lerp(gradients, averages, self.momentum)


def _order(parameter: Tensor) -> tuple[int, ...]:
    """Returns the dimensions as they lie in memory, outputs first: a matrix's columns may come in any order."""
    inner = range(1, parameter.ndim)
    strides = parameter.stride()
    return (0, *sorted(inner, key=lambda each: (-strides[each], each)))


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Brings the singular values of each of (B, M, N) matrices near 1, by Newton-Schulz rounds.

    They are first divided by the root of the Gram matrix's norm, which is at least the largest and far less than the
    matrix's own norm. A round multiplies by a polynomial of the Gram matrix. If one side is short beside the other,
    the rounds are run on the Gram matrix alone, in float32: rounded to bfloat16 it has negative eigenvalues, which grow
    without bound. Else they are run on the matrices, for which bfloat16 is enough.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT, dtype).mT
    elongated = matrices.shape[2] > ELONGATED * matrices.shape[1]
    rounded = matrices.to(dtype)
    sides = matrices.float() if elongated else rounded
    gram = (sides @ sides.mT).float()
    largest = gram.norm(dim=(1, 2), keepdim=True) * SLACK + torch.finfo(torch.float32).tiny
    if elongated:
        product = _product_of_rounds(gram / largest) / largest.sqrt()
        orthogonal: Tensor = (product.to(dtype) @ rounded).to(matrices.dtype)
        return orthogonal
    bent: Tensor = (matrices / largest.sqrt()).to(dtype)  # scaled after rounding, the Gram matrix would not fit it
    for a, b, c in ROUNDS:
        gram = bent @ bent.mT
        bent = torch.baddbmm(bent, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), bent, beta=a)
    return bent.to(matrices.dtype)


def _product_of_rounds(gram: Tensor) -> Tensor:
    """Multiplies the polynomials of the rounds, which commute."""
    identity = torch.eye(gram.shape[1], device=gram.device)
    product = factor = identity
    for number, (a, b, c) in enumerate(ROUNDS):
        gram = factor @ gram @ factor if number else gram
        factor = a * identity + torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        product = factor @ product if number else factor
    return product
