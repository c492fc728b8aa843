"""Assigns optimizers to parameters: AdamW for all, or Muon for the inner weight matrices and AdamW for the rest.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest matrix with all singular values alike, so that the
many small directions of a gradient count as much as its few large ones. A convolution is a matrix of out x (in kh kw).
Steps are scaled to the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2), so that one
learning rate serves both. torch's own Muon takes linear layers only.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ip2p.config import TrainingConfig
from ip2p.models.architecture import Architecture

logger = logging.getLogger(__name__)

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Jordan's quintic: five rounds bring singular values from 0.001 and above to about 0.7 to 1.2."""
NUM_ROUNDS = 5
ELONGATED = 2
"""Ratio of the sides above which the rounds cost less on the Gram matrix."""


def new_optimizer(
    denoiser: nn.Module,
    base: Architecture,
    config: TrainingConfig,
    *,
    fused: bool,
    matmul: torch.dtype = torch.float32,
) -> AdamW:
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
        return Muon(filled, matmul=matmul, **options)
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
        by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                lookahead = self._lookahead(parameter, parameter.grad).flatten(1)
                by_shape[lookahead.shape].append((parameter, lookahead))
        for shape, members in by_shape.items():
            rate, decay = group["lr"] * 0.2 * max(shape) ** 0.5, group["lr"] * group["weight_decay"]
            updates = orthogonalise(torch.stack([lookahead for _, lookahead in members]), self.matmul)
            for (parameter, _), update in zip(members, updates, strict=True):
                parameter.mul_(1 - decay).add_(update.view(parameter.shape), alpha=-rate)

    def _lookahead(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """Applies Nesterov's momentum. AdamW looks for the count of steps when a state is loaded."""
        state = self.state[parameter]
        if not state:
            state |= {"step": torch.zeros(()), "momentum_buffer": torch.zeros_like(gradient)}
        state["step"] += 1
        average: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(average, self.momentum)


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Brings the singular values of each of (B, M, N) matrices near 1, by Newton-Schulz rounds.

    A round multiplies by a polynomial of the Gram matrix. If one side is short beside the other, the rounds are run
    on the Gram matrix alone, in float32 (its errors grow); else on the matrices, for which bfloat16 is enough.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT, dtype).mT
    scaled = matrices.float() / (matrices.float().norm(dim=(1, 2), keepdim=True) + 1e-7)
    if matrices.shape[2] > ELONGATED * matrices.shape[1]:
        return _by_gram(scaled).to(matrices.dtype)
    bent: Tensor = scaled.to(dtype)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NUM_ROUNDS):
        gram = bent @ bent.mT
        bent = torch.baddbmm(bent, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), bent, beta=a)
    return bent.to(matrices.dtype)


def _by_gram(scaled: Tensor) -> Tensor:
    """Multiplies the polynomials, which commute, and applies their product at the end."""
    a, b, c = NEWTON_SCHULZ
    gram = scaled @ scaled.mT
    identity = torch.eye(gram.shape[1], device=gram.device)
    product = factor = a * identity + torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    for _ in range(NUM_ROUNDS - 1):
        gram = factor @ gram @ factor
        factor = a * identity + torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        product = factor @ product
    orthogonal: Tensor = product @ scaled
    return orthogonal
