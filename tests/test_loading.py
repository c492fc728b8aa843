"""What `auto` stands for."""

from __future__ import annotations

import pytest
import torch

from ip2p.models.loading import resolve_dtype


@pytest.mark.parametrize(
    ("has_avx", "has_amx", "expected"),
    [(False, False, "float32"), (True, False, "bfloat16"), (False, True, "bfloat16")],
)
def test_auto_is_bfloat16_only_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, has_avx: bool, has_amx: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    assert resolve_dtype("auto", "cpu") == expected
    assert resolve_dtype("auto", "mps") == "float32"
    assert resolve_dtype("float16", "cpu") == "float16"


@pytest.mark.parametrize("native", [False, True])
def test_auto_asks_the_gpu_for_what_it_does_itself(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert resolve_dtype("auto", "cuda:0") == ("bfloat16" if native else "float32")
