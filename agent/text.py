"""Text for people: a path may hold any bytes, and must neither break a line nor drive a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` with control characters and bytes that are no text escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
