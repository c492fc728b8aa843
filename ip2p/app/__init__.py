"""The web page: edit pictures, browse datasets, try prompts, look at runs. Needs the extra `app` (gradio)."""

from __future__ import annotations

from ip2p.app.page import build_page, serve

__all__ = ["build_page", "serve"]
