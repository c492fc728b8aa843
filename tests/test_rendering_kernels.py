"""The kernels compute the same; where xformers cannot run, torch's is used and the log says so once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from ip2p.config import AttentionBackend
from ip2p.p2p import attention


@pytest.fixture(autouse=True)
def forget() -> None:
    attention._xformers_runs.cache_clear()


def explicit_maps(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None = None, *, scale: float
) -> Tensor:
    """What xformers' operator is documented to compute, in its layout (B, N, heads, D)."""
    logits = torch.einsum("bnhd,bmhd->bhnm", query, key) * scale
    if attn_bias is not None:
        logits = logits + attn_bias
    return torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), value)


@pytest.mark.parametrize("masked", [False, True])
def test_xformers_is_given_its_own_layout(monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    ops = pytest.importorskip("xformers.ops")
    monkeypatch.setattr(ops, "memory_efficient_attention", explicit_maps)
    query, key, value = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    mask = torch.randn(2, 1, 1, 5) if masked else None
    kernel = attention.choose_kernel("xformers", torch.device("cpu"), torch.float32)
    assert kernel is attention.xformers
    expected = attention.sdpa(query, key, value, mask, 0.3)
    torch.testing.assert_close(kernel(query, key, value, mask, 0.3), expected, atol=1e-5, rtol=1e-5)


def test_where_xformers_cannot_run_torchs_kernel_is_used_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ops = pytest.importorskip("xformers.ops")

    def refuse(*_: Any, **__: Any) -> Tensor:
        raise NotImplementedError("No operator found\n for this device")

    monkeypatch.setattr(ops, "memory_efficient_attention", refuse)
    with caplog.at_level(logging.WARNING):
        chosen = [attention.choose_kernel("xformers", torch.device("cpu"), torch.float32) for _ in range(3)]
    assert chosen == [attention.sdpa] * 3
    (record,) = caplog.records
    assert "xformers cannot attend on cpu in torch.float32" in record.message
    assert "No operator found" in record.message


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_torchs_kernel_is_the_usual_one(backend: AttentionBackend) -> None:
    assert attention.choose_kernel(backend, torch.device("cpu"), torch.float32) is attention.sdpa
