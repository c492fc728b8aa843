"""ip2p: instruction-based image editing, from captions to a trained and evaluated editor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ip2p.editing import Editor

__version__ = "0.1.0"
__all__ = ["Editor", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports `ip2p.Editor`, which needs torch, on first use."""
    if name == "Editor":
        from ip2p.editing import Editor

        return Editor
    raise AttributeError(f"module 'ip2p' has no attribute {name!r}")
