"""Lets the site use files outside `docs/`: it adds them as pages or images and points links at them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "readme.md",
    "data/README.md": "shipped-data.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files of the repository, and where they appear in the site."""
IMAGES = "data/sample/"
LINK = re.compile(r"(\]\()([^)\s#]+)")
"""The target of a Markdown link or image, without its anchor."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages and the images."""
    images = {f"{IMAGES}{path.name}": f"images/{path.name}" for path in (ROOT / IMAGES).glob("*.png")}
    for source, target in (PAGES | images).items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites links from the repository's paths to the site's."""
    uri = page.file.src_uri
    here = next((source for source, target in PAGES.items() if target == uri), f"docs/{uri}")

    def rewrite(match: re.Match[str]) -> str:
        if ":" in match[2]:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[2]))
        path = re.sub(f"^{IMAGES}", "docs/images/", path)
        target = PAGES.get(path, path.removeprefix("docs/"))
        return match[1] + posixpath.relpath(target, posixpath.dirname(uri) or ".")

    return LINK.sub(rewrite, markdown)
