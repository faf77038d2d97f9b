"""Text for people: a path may contain any bytes, and must neither break a line nor control a terminal."""

from __future__ import annotations

from collections.abc import Iterable

TITLE_MAX = 64  # characters of a path in a title: ps shows only as much as fits where the environment was
_SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
NAMED_MAX = 5  # paths that a sentence names; a mount point may have 4 KiB


def printable(text: str) -> str:
    """Return `text` with control characters and undecodable bytes escaped."""
    # repr, since the codec unicode_escape is imported at its first use.
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def brief(path: str) -> str:
    """Return a printable path for a title; of a long path the beginning and the end."""
    half = (TITLE_MAX - 3) // 2
    text = printable(path if len(path) <= TITLE_MAX else path[:half] + path[-half:])
    return text if len(text) <= TITLE_MAX >= len(path) else f"{text[:half]}...{text[-half:]}"


def size(number: float) -> str:
    """Return a number of bytes in a unit that leaves few digits."""
    unit = 0
    while number >= 1024 and unit < len(_SIZES) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.4g} {_SIZES[unit]}"


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """Return the first names of a long list, and how many more there are."""
    found = list(names)
    more = [f"{len(found) - NAMED_MAX} more"] if len(found) > NAMED_MAX else []
    return separator.join(found[:NAMED_MAX] + more)
