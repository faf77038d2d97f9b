"""A terminal in the locale C is sent ASCII alone, though Python would send it UTF-8 (PEP 538, PEP 540)."""

from __future__ import annotations

import io

import pytest
from virtagent.host import charset


class Stream(io.TextIOWrapper):
    """A stream in UTF-8, and whether it is a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        self._terminal = terminal
        super().__init__(io.BytesIO(), encoding="utf-8")

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("env", "encoding"),
    [
        ({}, "ascii"),
        ({"LANG": "C"}, "ascii"),
        ({"LC_ALL": "POSIX", "LANG": "de_DE.UTF-8"}, "ascii"),
        ({"LC_CTYPE": "C", "LANG": "de_DE.UTF-8"}, "ascii"),
        ({"LANG": "C.UTF-8"}, "utf-8"),
        ({"LANG": "de_DE.UTF-8"}, "utf-8"),
        ({"LC_CTYPE": "C.utf8", "LANG": "C"}, "utf-8"),
        ({"LC_ALL": "", "LANG": "en_US.UTF-8"}, "utf-8"),
        ({"LANG": "C", "PYTHONUTF8": "1"}, "utf-8"),
    ],
)
def test_the_locale_says_what_a_terminal_can_show(env: dict[str, str], encoding: str) -> None:
    stream = Stream(terminal=True)
    charset.limit(stream, env)
    assert stream.encoding == encoding
    print("/srv/\xfc\u65e5", file=stream, end="", flush=True)
    said = stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert said == (b"/srv/\\xfc\\u65e5" if encoding == "ascii" else "/srv/\xfc\u65e5".encode())


def test_a_file_gets_what_it_always_got() -> None:
    stream = Stream(terminal=False)
    charset.limit(stream, {"LANG": "C"})
    assert stream.encoding == "utf-8"
