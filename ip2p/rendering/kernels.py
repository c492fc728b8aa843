"""The fused attention kernels to choose from: torch's own, and xformers' where it can run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p.config import AttentionBackend
from ip2p.errors import first_line

logger = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""(query, key, value, additive mask, scale), each (B, heads, N, D), to (B, heads, N, D)."""


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """torch's scaled dot-product attention."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def xformers(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """xformers' memory-efficient attention, which wants (B, N, heads, D)."""
    from xformers.ops import memory_efficient_attention

    query, key, value = (each.transpose(1, 2).contiguous() for each in (query, key, value))
    if mask is not None:
        mask = mask.expand(query.shape[0], query.shape[2], query.shape[1], key.shape[1]).to(query.dtype)
    found: Tensor = memory_efficient_attention(query, key, value, attn_bias=mask, scale=scale)
    return found.transpose(1, 2)


def choose_kernel(backend: AttentionBackend, device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel of a backend; torch's, with one log line, where xformers is asked for and cannot run."""
    if backend != "xformers":
        return sdpa
    return xformers if _xformers_runs(device.type, dtype) else sdpa


@cache
def _xformers_runs(device: str, dtype: torch.dtype) -> bool:
    """Tries it on a few numbers; the answer, logged once where it is no, holds for the process."""
    try:
        sample = torch.zeros(1, 1, 16, 16, device=device, dtype=dtype)
        xformers(sample, sample, sample, None, 1.0)
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = first_line(error)
        logger.warning("xformers cannot attend on %s in %s, torch's kernel is used: %s", device, dtype, reason)
        return False
    return True
