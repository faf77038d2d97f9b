"""Text for people: a path may contain any bytes, and must neither break a line nor control a terminal."""

from __future__ import annotations

from collections.abc import Iterable

TITLE_MAX = 64  # characters of a path in a title: ps shows only as much as fits where the environment was
SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
_UNITS = ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s"))
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
    """Return bytes with two digits or three: 512 bytes, 4 KiB, 1.5 GiB, 84 MiB."""
    unit = 0
    while number >= 999.5 and unit < len(SIZES) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.0f} {SIZES[unit]}" if number >= 9.95 else f"{number:.1f}".removesuffix(".0") + f" {SIZES[unit]}"


def digits(number: float) -> str:
    """Return a number with three digits, or as a whole one: 0.25, 41.2, 3600."""
    return f"{number:.3g}" if number < 999.5 else f"{number:.0f}"


def took(seconds: float) -> str:
    """Return seconds as 0.4 ms, 11 ms, 3.02 s, 41 s, 3 min 20 s, 5 h 2 min or 12 d 3 h."""
    if seconds == 0:
        return "0 s"
    if seconds < 1:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for unit, below, name, name_below in _UNITS:
        if whole >= unit:
            rest = whole % unit // below
            return f"{whole // unit:.12g} {name}" + (f" {rest} {name_below}" if rest else "")
    return f"{whole} s"


def left(seconds: float) -> str:
    """Return what is left of a countdown in whole seconds: 41 s, 1 min; less than 1 s."""
    return took(round(seconds)) if seconds >= 0.5 else "less than 1 s"


def listed(names: Iterable[str], separator: str = ", ", *, more: int = 0) -> str:
    """Return the first names of a long list, and how many more there are; `more` are not in the list."""
    found = list(names)
    more += max(0, len(found) - NAMED_MAX)
    return separator.join([*found[:NAMED_MAX], *([f"{more} more"] if more else [])])
