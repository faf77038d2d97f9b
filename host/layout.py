"""Cells, lines and columns of a terminal, and figures in few digits. Pure; only ASCII is added."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

from ..agent.api.text import SIZES, printable, took

Span = tuple[str, str]
"""A text, and how it is drawn: "", "bold", "good", "still", "bad"."""
Line = list[Span]
GAP = "   "
_WRAPPED = 4  # lines of one sentence


def cells(words: str) -> int:
    """Return how many cells of a terminal a text takes (Unicode Standard Annex 11)."""
    if words.isascii():
        return len(words)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in words)
    return len(words) + wide - sum(unicodedata.combining(char) > 0 for char in words)


def width_of(line: Line) -> int:
    """Return how many cells a line takes."""
    return sum(cells(words) for words, _ in line)


def cut(line: Line, width: int) -> Line:
    """Return the line without what the terminal has no room for, and without what could control it."""
    found: Line = []
    left = width
    for words, style in line:
        words = printable(words)
        if cells(words) > left:
            while words and cells(words) > max(0, left - 1):
                words = words[:-1]
            return [*found, (words + ">", style)] if left > 0 else found
        found.append((words, style))
        left -= cells(words)
    return found


def middle(words: str, width: int) -> str:
    """Cut a text in its middle: both ends of a path tell something."""
    if cells(words) <= width:
        return words
    front, back = words, words
    while front and cells(front) > (width - 2) // 2:
        front = front[:-1]
    while back and cells(back) > width - 2 - cells(front):
        back = back[1:]
    return f"{front}..{back}"


def wrapped(words: str, width: int, style: str = "") -> list[Line]:
    """Return a sentence in as many lines as it needs, but for a very long one."""
    found = textwrap.wrap(printable(words), max(10, width - 2), break_on_hyphens=False)
    if len(found) > _WRAPPED:
        found[_WRAPPED - 1] += " ..."
    return [[("  " + line, style)] for line in found[:_WRAPPED]]


def aligned(rows: Sequence[Sequence[tuple[int, str, str]]], width: int) -> list[Line]:
    """Align cells, each with a rank, in columns; without the columns of the highest ranks if there is no room.

    The first column is cut in its middle before that.
    """
    if not rows:
        return []
    parts = [[(rank, printable(words), style) for rank, words, style in row] for row in rows]
    ranks = [rank for rank, _, _ in parts[0]]
    widths = [max(cells(row[column][1]) for row in parts) for column in range(len(ranks))]
    kept = [column for column, wide in enumerate(widths) if wide]

    def needed() -> int:
        return sum(widths[column] + len(GAP) for column in kept) - 1

    least = min(widths[0], max(12, width // 4)) if ranks[0] == 0 else widths[0]
    while needed() - widths[0] + least > width and (most := max(ranks[column] for column in kept)) > 0:
        kept.remove([column for column in kept if ranks[column] == most][-1])
    if needed() > width and kept and kept[0] == 0:
        widths[0] = max(least, widths[0] - (needed() - width))
    lines: list[Line] = []
    for row in parts:
        line: Line = [("  ", "")]
        for column in kept:
            _, words, style = row[column]
            words = middle(words, widths[column]) if column == 0 else words
            line.append((words, style))
            line.append((" " * (widths[column] - cells(words)) + GAP, ""))
        lines.append(line[:-1])
    return lines


def bar(share: float, wide: int) -> str:
    """Return a bar that is full to `share` (0 to 1), "" if that is not known."""
    if not 0 <= share <= 1:
        return ""
    full = int(share * wide)
    return f"[{'#' * full}{'.' * (wide - full)}]"


def size(number: float) -> str:
    """Return bytes with two digits or three, so that a column stays as wide as it is: 4.0 MiB, 39 MiB."""
    unit = 0
    while number >= 1000 and unit < len(SIZES) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.0f} {SIZES[unit]}" if number >= 9.95 or not unit else f"{number:.1f} {SIZES[unit]}"


def of(number: float, whole: float) -> str:
    """Return two sizes: 40 of 59 MiB."""
    first, second = size(number).split(), size(whole).split()
    return f"{first[0]} of {' '.join(second)}" if first[1] == second[1] else f"{' '.join(first)} of {' '.join(second)}"


def seconds_of(seconds: float) -> str:
    """Return seconds with one digit at most behind the point, none from 10 s on."""
    if isinstance(seconds, int) or seconds >= 9.95:
        return took(round(seconds))
    return f"{max(0.0, seconds):.1f} s"
