"""Text for people: a path may hold any bytes, and must neither break a line nor drive a terminal."""

from __future__ import annotations

from collections.abc import Iterable

TITLE_MAX = 64  # characters of a path in a title, of which ps shows no more than the environment had room for
NAMED_MAX = 5  # paths of a list in a sentence; a mount point may have 4 KiB


def printable(text: str) -> str:
    """Return `text` with control characters and bytes that are no text escaped."""
    # repr and not the codec unicode_escape, which python imports when it is first used.
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def brief(path: str) -> str:
    """Return a printable path, of a long one the beginning and the end, for a title."""
    half = (TITLE_MAX - 3) // 2
    text = printable(path if len(path) <= TITLE_MAX else path[:half] + path[-half:])
    return text if len(text) <= TITLE_MAX >= len(path) else f"{text[:half]}...{text[-half:]}"


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """Return the first names of a list that may be long, and how many more there are."""
    found = list(names)
    more = [f"{len(found) - NAMED_MAX} more"] if len(found) > NAMED_MAX else []
    return separator.join(found[:NAMED_MAX] + more)
