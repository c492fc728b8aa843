"""Explicit attention maps against torch's fused attention: the same values and gradients, chosen by size and device."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from ip2p.shapes.train.unet import new_unet
from ip2p.training import attention
from ip2p.training.attention import SmallMaps, choose_attention


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return new_unet(32)


def run(model: UNet2DConditionModel) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    noisy, text = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 7, 32, generator=generator)
    output = model(noisy, torch.tensor([3, 900]), text).sample
    output.square().mean().backward()
    return output.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters()])


@pytest.mark.parametrize("most", [0, 63, 64, 1024])
def test_small_maps_give_the_values_and_gradients_of_the_fused_kernel(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "MOST_POSITIONS", most)
    fused, explicit = unet(), unet()
    explicit.set_attn_processor(SmallMaps())
    for expected, got in zip(run(fused), run(explicit), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_few_positions_take_explicit_maps_and_many_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for kind in (AttnProcessor, AttnProcessor2_0):
        plain = kind.__call__

        def spy(
            self: object, *args: object, name: str = kind.__name__, plain: object = plain, **options: object
        ) -> object:
            calls.append(name)
            return plain(self, *args, **options)  # type: ignore[operator]

        monkeypatch.setattr(kind, "__call__", spy)
    model = unet()
    model.set_attn_processor(SmallMaps())
    run(model)
    assert set(calls) == {"AttnProcessor"}
    calls.clear()
    monkeypatch.setattr(attention, "MOST_POSITIONS", 63)
    run(model)
    assert set(calls) == {"AttnProcessor2_0"}


@pytest.mark.parametrize(
    ("device", "precision", "replaced"), [("cpu", "bf16", True), ("cpu", "no", False), ("cuda", "bf16", False)]
)
def test_it_is_chosen_for_bfloat16_on_a_cpu_alone(device: str, precision: str, replaced: bool) -> None:
    model = unet()
    own = next(iter(model.attn_processors))
    model.set_attn_processor(model.attn_processors | {own: AttnProcessor()})
    choose_attention(model, torch.device(device), precision)
    kinds = {name: type(process) for name, process in model.attn_processors.items()}
    assert kinds.pop(own) is AttnProcessor
    assert set(kinds.values()) == {SmallMaps if replaced else AttnProcessor2_0}
