"""The daemon's log on stderr: never blocks, and loses nothing without a count.

stderr is opened anew with O_NONBLOCK (the flag would else be set for everyone who shares it); a socket is written with
MSG_DONTWAIT. A regular file cannot be written without blocking while its file system is frozen, so lines for it wait.
"""

from __future__ import annotations

import os
import socket
import stat
from collections import deque

from ..agent.text import printable

WAITING_MAX = 16384
_PREFIX = {
    "err": "<3>",
    "warning": "<4>",
    "notice": "<5>",
    "info": "<6>",
    "debug": "<7>",
    "audit": "<5>",
}  # sd-daemon(3)
_LEVELS = ["err", "warning", "notice", "info", "debug"]


class Log:
    """Lines to a descriptor; what it does not take now waits, in order."""

    def __init__(self, fd: int, level: str, *, prefixed: bool) -> None:
        self._chosen = {"audit", *_LEVELS[: _LEVELS.index(level) + 1]}
        self._prefixed = prefixed
        mode = os.fstat(fd).st_mode
        self.waits_while_frozen = stat.S_ISREG(mode)
        self._socket = socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(mode) else None
        self.fd = self._socket.fileno() if self._socket else _open_again(fd)
        self._waiting: deque[bytes] = deque()
        self._dropped = 0

    def add(self, level: str, text: str) -> None:
        """Take a line; control characters are escaped, so that one line stays one."""
        if level not in self._chosen:
            return
        if len(self._waiting) >= WAITING_MAX:
            self._dropped += 1
            return
        self._waiting.append(self._line(level, printable(text)))

    def _line(self, level: str, text: str) -> bytes:
        return f"{_PREFIX[level] if self._prefixed else ''}virtagentd: {text}\n".encode(errors="backslashreplace")

    def write(self) -> bool:
        """Write what can be written; return whether something still waits."""
        while self._waiting:
            line = self._waiting[0]
            try:
                if self._socket:
                    count = self._socket.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                else:
                    count = os.write(self.fd, line)
            except BlockingIOError:
                return True
            except OSError:
                # Whoever read the log is gone. What it would have got is counted, for whoever reads next.
                self._dropped += len(self._waiting)
                self._waiting.clear()
                return False
            if count < len(line):
                self._waiting[0] = line[count:]
                continue
            self._waiting.popleft()
            if self._dropped:
                self._waiting.append(self._line("warning", f"log: {self._dropped} lines were lost"))
                self._dropped = 0
        return False


def _open_again(fd: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        # Not ours to open (a terminal of another user): shared it is, and blocking as it was made.
        return os.dup(fd)
