"""LPIPS (Zhang et al., 2018) by the package of its authors: the perceptual distance of two pictures at every place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ip2p.models.loading import load_once, resolve_device

if TYPE_CHECKING:
    from torch import nn

SMALLEST_SIDE = 32
"""Pixels; the backbones leave nothing of smaller pictures."""


def lpips_map(
    net: str, device: str, before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8], *, setting: str
) -> npt.NDArray[np.float32]:
    """Returns the distances (height, width) of two pictures of one size; `setting` names what asks for them."""
    import torch

    model, device = load_lpips(net, device, setting=setting)
    pictures = torch.stack([torch.tensor(picture) for picture in (before, after)])
    pixels = (pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).to(device)
    with torch.inference_mode():
        distances: npt.NDArray[np.float32] = model(pixels[:1], pixels[1:])[0, 0].cpu().numpy()
    return distances


def load_lpips(net: str, device: str, *, setting: str) -> tuple[nn.Module, str]:
    """Loads a network, once per process, and returns it with its device. ValueError without the package."""
    try:
        import lpips
    except ImportError as error:
        raise ValueError(f"{setting} needs lpips. Install it with: pip install 'ip2p[lpips]'") from error

    device = resolve_device(device)

    def load() -> nn.Module:
        network: nn.Module = lpips.LPIPS(net=net, spatial=True, verbose=False)
        return network.eval().requires_grad_(False).to(device)

    return load_once(("lpips", net, device), load), device
