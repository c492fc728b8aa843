"""Knobs of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from ip2p.config.checks import check_positive


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """How well the editor edits and how much it keeps."""

    domain: str | None = None
    """`module:Class` of a domain that draws held-out edits and judges them; else the test split and CLIP alone."""
    data: str | None = None
    """Dataset folder whose test split holds the held-out edits where there is no domain; else what was trained on."""
    num_edits: int = 490
    """Held-out edits for the oracle's figures."""
    num_sweep_edits: int = 70
    """Edits for the sweep of the image guidance."""
    image_guidance_scales: tuple[float, ...] = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
    """Values of the sweep (paper, figure 8)."""
    guidance_scale: float = 7.5
    """Text guidance."""
    image_guidance_scale: float = 1.5
    """Image guidance outside the sweep."""
    num_inference_steps: int = 20
    """Denoising steps."""
    batch_size: int = 32
    """Edits per batch; the result does not depend on it."""
    device: str = "auto"
    """Where to edit."""
    seed: int = 1
    """Seed of the held-out edits and of the noise."""

    def __post_init__(self) -> None:
        check_positive(self, "num_edits", "num_sweep_edits", "num_inference_steps", "batch_size")
