"""`ip2p app`: the web page."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

from ip2p.cli.arguments import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppArguments:
    """A page to edit pictures, browse pairs and compare runs."""

    runs: Path = Path("runs")
    """Folder whose runs are shown."""
    model: str | None = None
    """Editor that is chosen at first: a model folder or a hub id; the newest run's by default."""
    device: str = "auto"
    """Where to edit."""
    port: int | None = None
    """Port on 127.0.0.1; the first that is free from 7860 on by default."""
    share: bool = False
    """Make the page reachable from the internet through gradio's relay."""


def app(words: list[str]) -> None:
    """Opens a web page on this machine: edit pictures, browse pairs, compare runs."""
    options = parse(AppArguments, words, prog="ip2p app", description="A page on 127.0.0.1 over runs and editors.")
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs gradio. Install it: pip install 'ip2p[app]'")
    from ip2p.app import build_page, serve

    page = build_page(options.runs, options.model, options.device)
    address = serve(page, options.runs, port=options.port, share=options.share, wait=False)
    print(f"The page is at {address} (Ctrl-C ends it).", flush=True)
    page.block_thread()
