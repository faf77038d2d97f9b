"""Text for people: a path may hold any bytes, and must neither break a line nor drive a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` with control characters and bytes that are no text escaped."""
    # repr and not the codec unicode_escape, which python imports when it is first used.
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
