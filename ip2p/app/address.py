"""Keeps an edit's settings in the page's address, so that a reload or a link restores them. No gradio here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlencode

from ip2p.app.browsing import NUM_SAMPLES
from ip2p.config.files import evaluation_of

BOUNDS = {
    "guidance_scale": (1, 15, 0.5),
    "image_guidance_scale": (1, 3, 0.1),
    "num_inference_steps": (1, 100, 1),
    "seed": (0, 2**32 - 1, 1),
    "sample": (0, NUM_SAMPLES - 1, 1),
}
"""Minimum, maximum and step of the page's numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an edit on the page is made from; each field is a key of the address."""

    instruction: str = ""
    model: str = ""
    guidance_scale: float = 7.5
    image_guidance_scale: float = 1.5
    num_inference_steps: int = 20
    seed: int = 0
    sample: int | None = None
    """Number of the sample picture; None for a picture of the user's, which no address holds."""


def default_settings(model: str) -> Settings:
    """Returns the settings that a run's editor was evaluated with, within the page's bounds."""
    knobs = evaluation_of(Path(model))
    return Settings(
        model=model,
        guidance_scale=_within("guidance_scale", knobs.guidance_scale),
        image_guidance_scale=_within("image_guidance_scale", knobs.image_guidance_scale),
        num_inference_steps=int(_within("num_inference_steps", knobs.num_inference_steps)),
    )


def write_address(settings: Settings) -> str:
    """Writes settings as the query of an address."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return urlencode({name: "" if value is None else value for name, value in values.items()})


def read_address(query: Mapping[str, str], model: str) -> Settings:
    """Reads settings from an address; what it lacks or gives wrongly is as for `model`, on the first sample picture."""
    defaults = default_settings(query.get("model") or model)
    sample = _read_number(query, "sample", -1 if "instruction" in query else 0)
    return Settings(
        instruction=query.get("instruction", ""),
        model=defaults.model,
        guidance_scale=_read_number(query, "guidance_scale", defaults.guidance_scale),
        image_guidance_scale=_read_number(query, "image_guidance_scale", defaults.image_guidance_scale),
        num_inference_steps=int(_read_number(query, "num_inference_steps", defaults.num_inference_steps)),
        seed=int(_read_number(query, "seed", defaults.seed)),
        sample=int(sample) if sample >= 0 else None,
    )


def _read_number(query: Mapping[str, str], name: str, default: float) -> float:
    low, high, _ = BOUNDS[name]
    try:
        value = float(query[name])
    except (KeyError, ValueError):
        return default
    return value if low <= value <= high else default


def _within(name: str, value: float) -> float:
    low, high, _ = BOUNDS[name]
    return min(max(value, low), high)
