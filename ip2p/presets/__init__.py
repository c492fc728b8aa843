"""Complete configs, as functions that read like recipes and are changed with `replace`."""

from __future__ import annotations

from collections.abc import Callable

from ip2p.config import PipelineConfig
from ip2p.presets.embedded import data_folder, shapes, shapes_dit, shapes_pictures, shapes_quick
from ip2p.presets.wild import flux, klein, kontext, paper, sd15, sd21, sd35, sdxl

__all__ = [
    "PRESETS",
    "data_folder",
    "flux",
    "klein",
    "kontext",
    "paper",
    "sd15",
    "sd21",
    "sd35",
    "sdxl",
    "shapes",
    "shapes_dit",
    "shapes_pictures",
    "shapes_quick",
]

PRESETS: dict[str, Callable[[], PipelineConfig]] = {
    "shapes": shapes,
    "shapes-quick": shapes_quick,
    "shapes-pictures": shapes_pictures,
    "shapes-dit": shapes_dit,
    "sd15": sd15,
    "sd21": sd21,
    "sdxl": sdxl,
    "sd35": sd35,
    "flux": flux,
    "kontext": kontext,
    "klein": klein,
    "paper": paper,
}
