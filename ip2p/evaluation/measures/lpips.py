"""LPIPS (Zhang et al., 2018) outside the area that an edit may change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ip2p.config import fingerprint
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import Column, Measure, Setup, Values, fit_to

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LpipsMeasure(Measure):
    """Measures the distance to the input outside the mask, by the package of LPIPS' authors."""

    net: str
    device: str
    order = 50
    columns = (Column("lpips_kept", "LPIPS outside mask", "lower", "mean"),)

    @classmethod
    def from_setup(cls, setup: Setup) -> Self | None:
        """Makes the measure if a backbone is set."""
        return cls(setup.knobs.lpips, setup.knobs.device) if setup.knobs.lpips else None

    @property
    def identity(self) -> str:
        """Returns a hash of the backbone's name."""
        return fingerprint("lpips", self.net)

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns None if a case has no mask, or nothing outside it."""
        return [{"lpips_kept": self._outside_mask(*edit)} for edit in zip(cases, before, after, strict=True)]

    def _outside_mask(self, case: EditCase, before: Pixels, after: Pixels) -> float | None:
        import torch

        if (kept := case.kept_area) is None:
            return None
        model, device = _load_lpips(self.net, self.device)
        pictures = torch.stack([torch.tensor(picture) for picture in (before, fit_to(after, before))])
        pixels = (pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).to(device)
        with torch.inference_mode():
            distances = model(pixels[:1], pixels[1:])[0, 0].cpu().numpy()
        return float(distances[kept].mean())


def _load_lpips(net: str, device: str) -> tuple[nn.Module, str]:
    from ip2p.models.loading import load_once, resolve_device

    try:
        import lpips
    except ImportError as error:
        raise ValueError("evaluation.lpips needs lpips. Install it with: pip install 'ip2p[lpips]'") from error
    device = resolve_device(device)

    def load() -> nn.Module:
        network: nn.Module = lpips.LPIPS(net=net, spatial=True, verbose=False)
        return network.eval().requires_grad_(False).to(device)

    return load_once(("lpips", net, device), load), device
