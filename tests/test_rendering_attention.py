"""Sharing queries and keys is sharing the map: checked against explicit softmax maps on a real UNet."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ip2p.models.stable_diffusion import ARCHITECTURE as BASE
from ip2p.p2p.attention import CrossSharing, SelfSharing
from ip2p.p2p.installing import shared_attention
from ip2p.p2p.steps import StepShares
from tests.explicit_attention import ExplicitAttention
from tests.tiny import specs, tiny_unet

WIDTH = 128


class ExplicitMaps(ExplicitAttention):
    """Hands the original's map to the edited row, as the original software does."""

    def __init__(self, itself: SelfSharing | None, cross: CrossSharing | None = None) -> None:
        self.source = None if itself is None else itself.distinct[itself.place]
        self.cross = cross

    def edit(self, maps: Tensor, is_cross: bool) -> Tensor:
        if not is_cross and self.source is not None:
            return torch.stack([maps[int(row)] for row in self.source])
        if is_cross and self.cross is not None:
            original = maps.clone()
            for k, (row, origin) in enumerate(zip(self.cross.rows, self.cross.sources, strict=True)):
                moved = original[origin] @ self.cross.token_maps[k].to(maps.dtype)
                maps[row] = moved + original[row] * self.cross.own[k].to(maps.dtype)
        return maps


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny_unet()


def run(unet: UNet2DConditionModel, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(rows, 4, 16, 16, generator=generator)
    texts = torch.randn(rows, 5, WIDTH, generator=generator)
    with torch.no_grad():
        sample: Tensor = unet(latents.to(unet.dtype), 400, encoder_hidden_states=texts.to(unet.dtype)).sample.float()
    return sample


@pytest.mark.parametrize("active", [(True, True, True), (True, False, True), (False, False, False)])
def test_shared_queries_and_keys_equal_shared_maps(unet: UNet2DConditionModel, active: tuple[bool, ...]) -> None:
    source = StepShares.of(specs(p2p=[float(each) for each in active]), 0, 4).plan(2).itself
    with shared_attention(BASE.attention_layers(unet)) as shared:
        shared.itself = source
        found = run(unet, 12)
    before = dict(unet.attn_processors)
    unet.set_attn_processor(ExplicitMaps(source))
    expected = run(unet, 12)
    unet.set_attn_processor(before)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moving_values_equals_moving_the_maps_of_tokens(unet: UNet2DConditionModel, dtype: torch.dtype) -> None:
    """Five tokens: two swap places, one is the mean of two, one is scaled down, one keeps its own map."""
    moved = torch.tensor([[0, 1, 0.5, 0, 0], [1, 0, 0.5, 0, 0], [0] * 5, [0, 0, 0, 0.7, 0], [0] * 5])
    cross = CrossSharing(
        rows=torch.tensor([3, 5]),
        sources=torch.tensor([0, 2]),
        token_maps=torch.stack([moved, torch.zeros(5, 5)]),
        own=torch.tensor([[0, 0, 0, 0, 1.0], [1, 0, 2, 1, 1]]),
    )
    source = StepShares.of(specs(p2p=(1.0, 0.0, 1.0)), 0, 4).plan(1).itself
    model = tiny_unet().to(dtype)
    model.load_state_dict(unet.state_dict())
    with shared_attention(BASE.attention_layers(model), cross=True) as shared:
        plain = run(model, 6)
        shared.itself, shared.cross = source, cross
        found = run(model, 6)
    model.set_attn_processor(ExplicitMaps(source, cross))
    expected = run(model, 6)
    tolerance = 1e-5 if dtype == torch.float32 else 0.06 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    model.set_attn_processor(ExplicitMaps(source))
    without = run(model, 6)
    assert (found[[3, 5]] - without[[3, 5]]).abs().mean() > 4 * (found - expected).abs().mean()
    assert (found[[0, 1, 2, 4]] - plain[[0, 1, 2, 4]]).abs().max() <= tolerance


def test_sharing_changes_edited_rows_of_active_pairs_only(unet: UNet2DConditionModel) -> None:
    plain = run(unet, 12)
    with shared_attention(BASE.attention_layers(unet)) as shared:
        shared.itself = StepShares.of(specs(p2p=(1.0, 0.0, 1.0)), 0, 4).plan(2).itself
        found = run(unet, 12)
    changed = [(a - b).abs().max().item() > 1e-5 for a, b in zip(plain, found, strict=True)]
    assert changed == [False, False, False, True, False, True] * 2


def test_without_a_source_the_processors_are_diffusers_own(unet: UNet2DConditionModel) -> None:
    plain = run(unet, 4)
    with shared_attention(BASE.attention_layers(unet), cross=True):
        torch.testing.assert_close(run(unet, 4), plain, atol=1e-6, rtol=0)


def test_every_self_attention_and_no_cross_attention_shares(unet: UNet2DConditionModel) -> None:
    names = {id(module): name for name, module in unet.named_modules()}
    found = {names[id(layer)] for layer in BASE.attention_layers(unet).to_itself}
    assert found == {name for name in names.values() if name.endswith("attn1")}
    assert len(found) > 4
    to_text = {names[id(layer)] for layer in BASE.attention_layers(unet).to_text}
    assert to_text == {name.replace("attn1", "attn2") for name in found}


def test_processors_are_restored_after_an_error(unet: UNet2DConditionModel) -> None:
    before = dict(unet.attn_processors)
    with pytest.raises(RuntimeError, match="out of memory"), shared_attention(BASE.attention_layers(unet), cross=True):
        assert not set(unet.attn_processors.values()) & set(before.values())
        raise RuntimeError("out of memory")
    assert dict(unet.attn_processors) == before


def test_queries_and_keys_that_nobody_takes_are_not_computed(unet: UNet2DConditionModel) -> None:
    rows: list[tuple[int, int]] = []
    layer = BASE.attention_layers(unet).to_itself[0]
    hooks = [
        layer.to_q.register_forward_hook(lambda _, args, __: rows.append((len(args[0]), 0))),
        layer.to_v.register_forward_hook(lambda _, args, __: rows.append((0, len(args[0])))),
    ]
    with shared_attention(BASE.attention_layers(unet)) as shared:
        shared.itself = StepShares.of(specs(p2p=(1.0, 0.0, 1.0)), 0, 4).plan(2).itself
        run(unet, 12)
    for hook in hooks:
        hook.remove()
    assert rows == [(8, 0), (0, 12)]
