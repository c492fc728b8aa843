"""Layouts of other trainers: how each wants pairs on disk. A registry that needs no torch.

Every module here but those in `BESIDE` is a plug-in: it declares a `LAYOUT` and is found by its place in this folder. A
new layout is one new file and a row in docs/exchange.md.
"""

from __future__ import annotations

from ip2p.dataset.layouts.layout import Export, Layout, Sample
from ip2p.plugins import modules_in

BESIDE = ("layout",)
"""Modules of this package that declare no layout."""


def _read_layouts() -> dict[str, Layout]:
    """Returns the layouts of all plug-ins by name, in the order of their names."""
    layouts: list[Layout] = [module.LAYOUT for module in modules_in(__name__, __path__, BESIDE)]
    return {layout.name: layout for layout in sorted(layouts, key=lambda layout: layout.name)}


LAYOUTS = _read_layouts()
"""All layouts by name."""

__all__ = ["LAYOUTS", "Export", "Layout", "Sample"]
