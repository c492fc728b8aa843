"""An instruction applied to an image, with two guidances (paper, section 3.2.1)."""

from __future__ import annotations

from ip2p.editing.apply import edit_images, fitting_size, guidance_terms
from ip2p.editing.editor import Editor, Knobs, read_image, write_image
from ip2p.models.pipelines import load_editor

__all__ = [
    "Editor",
    "Knobs",
    "edit_images",
    "fitting_size",
    "guidance_terms",
    "load_editor",
    "read_image",
    "write_image",
]
