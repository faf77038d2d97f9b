"""A program on a terminal of the test's making, and what its screen shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

COLUMNS, LINES = 120, 40
_CSI = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")


class Terminal:
    """A program with a pseudo-terminal as its controlling one, for its three streams."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        lines: int = LINES,
        columns: int = COLUMNS,
    ) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            environment.pop(name, None)
        environment |= env or {}
        self.text = ""
        try:
            self.process = subprocess.Popen(
                command, stdin=slave, stdout=slave, stderr=slave, env=environment, preexec_fn=_take_over
            )
        finally:
            os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self.hang_up()

    def hang_up(self) -> None:
        """Close the terminal's other end: the program gets SIGHUP."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def resize(self, lines: int, columns: int) -> None:
        """Change the size of the terminal; the program gets SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """Type something; 0x03 is Ctrl-C."""
        os.write(self._master, keys)

    def read_until(self, *words: str, timeout: float = 20) -> str:
        """Read until the screen shows all of these words at once; return the screen."""
        deadline = time.monotonic() + timeout
        while not all(word in (shown := screen(self.text)) for word in words):
            if not self._read(deadline):
                raise AssertionError(f"the terminal does not show {words} within {timeout:g} s:\n{shown}")
        return shown

    def wait(self, timeout: float = 20) -> int:
        """Read until the program has ended; return its exit code."""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        if not select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        with contextlib.suppress(OSError):  # EIO: nobody has it open any more
            if data := os.read(self._master, 65536):
                self.text += data.decode(errors="replace")
                return True
        return False


def screen(text: str) -> str:
    """Return what a terminal shows after `text`: lines overwritten and erased as virtagentctl does it, no styles.

    The alternate screen (1049) is one that begins empty; the usual one is there again afterwards.
    """
    lines, row, column, at = [""], 0, 0, 0
    usual = lines, row, column
    while at < len(text):
        if match := _CSI.match(text, at):
            number = int(match[1]) if match[1].isdigit() else 1
            match match[2]:
                case "A":
                    row = max(0, row - number)
                case "K":
                    lines[row] = "" if match[1] == "2" else lines[row][:column]
                case "H":
                    row = column = 0
                case "J":
                    lines[row:] = [lines[row][:column]]
                case "h" if match[1] == "?1049":
                    usual, lines, row, column = (lines, row, column), [""], 0, 0
                case "l" if match[1] == "?1049":
                    lines, row, column = usual
                case "m" | "h" | "l":
                    pass
                case other:
                    raise AssertionError(f"the screen does not know {other!r}")
            at = match.end()
            continue
        match text[at]:
            case "\r":
                column = 0
            case "\n":
                row += 1
                if row == len(lines):
                    lines.append("")
            case "\x1b":
                if text[at:].startswith("\x1b[") or at + 1 == len(text):
                    break  # the rest of it is still to come
                raise AssertionError(f"the screen does not know {text[at : at + 5]!r}")
            case char:
                lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
                column += 1
        at += 1
    return "\n".join(lines)


def _take_over() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


CTL = [sys.executable, "-m", "virtagent.host.main"]
