"""Commands on a run folder that lies on an object store: they work in its local copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ip2p.mirror import is_url, working_copy


@contextmanager
def mirrored(words: list[str]) -> Iterator[list[str]]:
    """The words of a command with a run folder's URL replaced by its local copy, which the store follows meanwhile."""
    places = [index for index, word in enumerate(words) if is_url(_value(word)) and _names_a_run(words, index)]
    if not places:
        yield words
        return
    place = places[0]
    flag, url = words[place][: -len(_value(words[place]))], _value(words[place])
    with working_copy(url) as local:
        yield [*words[:place], f"{flag}{local}", *words[place + 1 :]]
    print(f"  {'stored in':<11} {url}")


def _value(word: str) -> str:
    return word.removeprefix("--out=")


def _names_a_run(words: list[str], index: int) -> bool:
    """Whether a word is the value of --out or stands by itself, rather than as the value of another flag."""
    before = words[index - 1] if index else ""
    if words[index].startswith("--"):
        return words[index].startswith("--out=")
    return before == "--out" or not before.startswith("--")
