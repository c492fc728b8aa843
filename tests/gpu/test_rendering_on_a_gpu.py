"""Pairs come out alike whichever attention kernel renders them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ip2p.models.pipelines import load_text_to_image
from ip2p.p2p import attention
from ip2p.p2p.sampler import sample_latents
from tests.test_rendering_exact import OPERATORS, distance, with_operator

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_xformers_renders_what_torchs_attention_does(tiny_sd: Path, name: str) -> None:
    pytest.importorskip("xformers.ops")
    attention._xformers_runs.cache_clear()
    if attention.choose_kernel("xformers", torch.device("cuda"), torch.float32) is attention.sdpa:
        pytest.skip("xformers has no kernel for this device in float32")
    pipeline = load_text_to_image(str(tiny_sd), revision=None, variant=None, dtype="float32", device="cuda")
    config, batch = with_operator({key: value for key, value in OPERATORS[name].items() if key != "local_blend"})
    with torch.inference_mode():
        expected = sample_latents(pipeline, batch, replace(config, attention_backend="sdpa"))
        found = sample_latents(pipeline, batch, replace(config, attention_backend="xformers"))
    assert distance(found, expected) < 1e-2
