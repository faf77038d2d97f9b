"""Lines of a picture on a terminal, drawn over and over. It knows nothing of what they say."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import TextIO

from .layout import Line, cut

_STYLES = {"bold": "1", "good": "32", "still": "1;35", "bad": "1;31"}  # legible on black and on white
_COLOURLESS = {"bold": "1", "still": "1", "bad": "1"}
_BEGIN, _END = (
    "\x1b[?25l\x1b[?1049h",
    "\x1b[?1049l\x1b[?25h",
)  # without a cursor, on the alternate screen (xterm's ctlseqs)


class Drawing:
    """A picture on the terminal `stream`, on the alternate screen.

    There a terminal of another size breaks no lines anew, so that nothing of an old picture stays,
    also in the scrollback. What was on the terminal is there again afterwards. All methods raise OSError if the
    terminal is gone. NO_COLOR in `env` (no-color.org) leaves only bold.
    """

    def __init__(self, stream: TextIO, *, env: Mapping[str, str] = os.environ) -> None:
        self._stream = stream
        self._styles = _COLOURLESS if env.get("NO_COLOR") else _STYLES
        self._drawn = False

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
        begin = "" if self._drawn else _BEGIN
        self._drawn = True
        shown = "\r\n".join(self._styled(line) + "\x1b[K" for line in lines)
        print(f"{begin}\x1b[H{shown}\x1b[J", end="", file=self._stream, flush=True)

    def close(self) -> None:
        """Remove the picture."""
        if self._drawn:
            self._drawn = False
            print(_END, end="", file=self._stream, flush=True)

    def _styled(self, line: Line) -> str:
        return "".join(
            f"\x1b[{self._styles[style]}m{words}\x1b[0m" if style in self._styles and words else words
            for words, style in line
        )

    def _sayable(self, line: Line) -> Line:
        """Escape what the terminal's encoding has no sign for."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return [(words.encode(encoding, "backslashreplace").decode(encoding), style) for words, style in line]
