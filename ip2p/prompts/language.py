"""Whether a text reads as English, without a model: by its script and its function words.

Captions are short, so a text without any function word passes as long as its letters are Latin.
"""

from __future__ import annotations

import re
import unicodedata

LATIN_SHARE = 0.9
_ENGLISH = (
    "the of and with in on at by for from to is are an its his her their this that as over under near beside into a "
    "some between behind through up down out one two it he she who while during after before make turn add remove"
)
_FOREIGN = (
    "der das und ein eine einen einem mit auf im von zu den dem des ist für bei aus nach nicht sich wie zum zur "
    "le la les un une et du dans sur avec pour par au aux est en sous chez ce cette qui que "
    "el los las una y con del al para por es su sus como este esta "
    "il lo gli uno di da nel nella sul sulla che della dei delle degli al alla "
    "os um uma das na nas nos com em ao pela pelo "
    "de het een van met op naar voor uit bij aan zijn niet "
    "og på med til av för och ett som är w z się nie ve bir ile için"
)
ENGLISH, FOREIGN = frozenset(_ENGLISH.split()), frozenset(_FOREIGN.split())
"""Function words of English, and of German, French, Spanish, Italian, Portuguese, Dutch and others what it has not."""
WORD = re.compile(r"[^\W\d_]+")


def reads_as(text: str, language: str) -> bool:
    """True for any text where the language is `any`."""
    return language == "any" or reads_as_english(text)


def reads_as_english(text: str) -> bool:
    """Mostly Latin letters, and at least as many English as foreign function words."""
    letters = [letter for letter in text if letter.isalpha()]
    if not letters or sum(map(_is_latin, letters)) < LATIN_SHARE * len(letters):
        return False
    words = WORD.findall(text)
    foreign = sum(word in FOREIGN for word in words)  # names in capitals do not count
    return foreign <= sum(word.lower() in ENGLISH for word in words)


def _is_latin(letter: str) -> bool:
    return letter.isascii() or unicodedata.name(letter, "").startswith("LATIN")
