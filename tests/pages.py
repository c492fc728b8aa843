"""README and docs as tests see them: their commands, snippets, code spans, links and headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
LANGUAGES = ("sh", "python", "json", "text")


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command of a shell block, its lines joined and its comment left out, or a whole Python snippet."""

    page: str
    line: int
    text: str
    is_python: bool = False

    @property
    def words(self) -> list[str]:
        """As a shell takes it apart; a program of the checkout's environment by its name alone."""
        first, *rest = shlex.split(self.text)
        return [first.removeprefix(".venv/bin/"), *rest]


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    pattern = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    text = PAGES[page].read_text()
    for found in pattern.finditer(text):
        yield Block(page, text.count("\n", 0, found.start(2)) + 1, found[1], found[2])


def commands(page: str) -> Iterator[Command]:
    """What a reader of a page would type, in order."""
    for block in blocks(page):
        if block.language == "python":
            yield Command(page, block.line, block.text, is_python=True)
        elif block.language == "sh":
            yield from _of_shell(block)


def _of_shell(block: Block) -> Iterator[Command]:
    start, parts = 0, list[str]()
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        start = start if parts else number
        parts.append(line.removesuffix("\\").strip())
        if not line.endswith("\\"):
            words = shlex.split(" ".join(parts), comments=True)
            parts = []
            if words:
                yield Command(block.page, start, shlex.join(words))


def prose(page: str) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```$", "", PAGES[page].read_text(), flags=re.DOTALL | re.MULTILINE)


def spans(page: str) -> list[str]:
    """Code within the text and the tables."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def links(page: str) -> list[str]:
    """Where a page points to."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(path: Path) -> set[str]:
    """What a git host calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.S | re.M), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
