"""Lines of a picture on a terminal: what is written to it."""

from __future__ import annotations

import io
import os

import pytest
from virtagent.host.drawing import Drawing


class Terminal(io.StringIO):
    """A terminal of `columns`, with an encoding of its own."""

    def __init__(self, columns: int = 20, encoding: str = "utf-8") -> None:
        super().__init__()
        self.columns = columns
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def fileno(self) -> int:
        return 99

    def said(self) -> str:
        found = self.getvalue()
        self.seek(0)
        self.truncate()
        return found


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    made = Terminal()
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((made.columns, 5)))
    return made


BEGIN, END = "\x1b[?25l\x1b[?1049h", "\x1b[?1049l\x1b[?25h"


def test_a_picture_is_drawn_over_the_last_one_and_the_screen_is_as_it_was_afterwards(terminal: Terminal) -> None:
    drawing = Drawing(terminal, env={})
    drawing.close()
    assert terminal.said() == "", "it was never drawn"
    drawing.draw([[("one", "bold")], [("two", "")]])
    assert terminal.said() == f"{BEGIN}\x1b[H\x1b[1mone\x1b[0m\x1b[K\r\ntwo\x1b[K\x1b[J"
    drawing.draw([[("three", "")]])
    assert terminal.said() == "\x1b[Hthree\x1b[K\x1b[J"
    drawing.close()
    assert terminal.said() == END
    drawing.close()
    assert terminal.said() == ""


def test_a_narrower_terminal_has_shorter_lines_and_nothing_of_the_old_ones(terminal: Terminal) -> None:
    """A line of the old picture stayed when the terminal was made narrower, and broke the lines anew."""
    drawing = Drawing(terminal, env={})
    drawing.draw([[("x" * 20, "")], [("y" * 11, "")]])
    terminal.said()
    terminal.columns = 10
    drawing.draw([[("z" * 20, "")]])
    assert terminal.said() == f"\x1b[H{'z' * 9}>\x1b[K\x1b[J"


def test_without_colours_only_bold_is_left(terminal: Terminal) -> None:
    drawing = Drawing(terminal, env={"NO_COLOR": "1"})
    drawing.draw([[("a", "bad"), ("b", "good"), ("c", "")]])
    assert terminal.said() == f"{BEGIN}\x1b[H\x1b[1ma\x1b[0mbc\x1b[K\x1b[J"


def test_no_colour_is_yellow_or_dim(terminal: Terminal) -> None:
    drawing = Drawing(terminal, env={})
    drawing.draw([[(style, style) for style in ("bold", "good", "still", "bad")]])
    said = terminal.said()
    assert "\x1b[2m" not in said
    assert "33" not in said


def test_what_the_encoding_lacks_is_escaped_and_still_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(encoding="latin-1")
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((12, 5)))
    Drawing(terminal, env={}).draw([[("/\xfc/\u65e5\u672c", "")]])
    assert terminal.said() == f"{BEGIN}\x1b[H/\xfc/\\u65e5\\u>\x1b[K\x1b[J"
