"""Lines of a picture on a terminal, drawn over and over in place. It knows nothing of what they say."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import TextIO

from .layout import Line, cut, width_of

_STYLES = {"bold": "1", "good": "32", "still": "1;35", "bad": "1;31"}  # legible on black and on white
_COLOURLESS = {"bold": "1", "still": "1", "bad": "1"}
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
_ALTERNATE, _USUAL = "\x1b[?1049h\x1b[H", "\x1b[?1049l"


class Drawing:
    """A picture on the terminal `stream`; `whole`: it has the terminal for itself (alternate screen).

    All methods raise OSError if the terminal is gone. NO_COLOR in `env` (no-color.org) leaves only bold.
    """

    def __init__(self, stream: TextIO, *, whole: bool, env: Mapping[str, str] = os.environ) -> None:
        self._stream = stream
        self._whole = whole
        self._styles = _COLOURLESS if env.get("NO_COLOR") else _STYLES
        self._drawn: list[int] | None = None
        """How many cells each line has that is on the terminal now; None before the first."""

    def size(self) -> tuple[int, int]:
        """Return columns and lines; 80 and 24 if the terminal does not say."""
        try:
            found = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            found = shutil.get_terminal_size()
        return found.columns or 80, found.lines or 24

    def draw(self, lines: Sequence[Line]) -> None:
        """Draw these lines instead of the last ones."""
        width, _ = self.size()
        lines = [cut(self._sayable(line), width) for line in lines]
        out = [] if self._drawn is not None else [_HIDE, _ALTERNATE if self._whole else ""]
        out.append(self._back(width))
        out.append("\r\n".join(self._styled(line) + "\x1b[K" for line in lines))
        out.append("\x1b[J")
        self._drawn = [width_of(line) for line in lines]
        print("".join(out), end="", file=self._stream, flush=True)

    def close(self) -> None:
        """Remove the picture."""
        if self._drawn is None:
            return
        end = _USUAL if self._whole else self._back(self.size()[0]) + "\x1b[J"
        self._drawn = None
        print(end + _SHOW, end="", file=self._stream, flush=True)

    def _back(self, width: int) -> str:
        """Go to the first cell of the first line. A terminal that became narrower has wrapped the lines."""
        if self._whole:
            return "\x1b[H"
        rows = sum(max(1, -(-long // width)) for long in self._drawn or [])
        return "\r" + (f"\x1b[{rows - 1}A" if rows > 1 else "")

    def _styled(self, line: Line) -> str:
        return "".join(
            f"\x1b[{self._styles[style]}m{words}\x1b[0m" if style in self._styles and words else words
            for words, style in line
        )

    def _sayable(self, line: Line) -> Line:
        """Escape what the terminal's encoding has no sign for."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return [(words.encode(encoding, "backslashreplace").decode(encoding), style) for words, style in line]
