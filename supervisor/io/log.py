"""The daemon's log: it never blocks, and counts what it loses.

stderr is opened anew with O_NONBLOCK (otherwise the flag would be set for everyone who shares it); a socket is written
with MSG_DONTWAIT. A write to a regular file blocks while its file system is frozen, so lines for it wait. syslog and
the journal get datagrams; if their reader has ended, the socket is connected anew for the next line, and until then
what was not sent waits.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ...agent.api.text import printable
from ..core.events import Entry

WAITING_MAX = 16384
LINE_MAX = 16384  # characters; a datagram holds some 200 KB
SYSLOG = "/dev/log"
_PRIORITY = {"err": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7, "audit": 5}  # syslog(3)
_LEVELS = ["err", "warning", "notice", "info", "debug"]
_DAEMON = 3 << 3  # the facility


class Sink(Protocol):
    """The place that lines go to."""

    waits_while_frozen: bool

    def fileno(self) -> int:
        """Return the descriptor that is writable again when the sink takes more."""

    def line(self, priority: int, text: str, entry: Entry | None = None) -> bytes:
        """Return the bytes of one line; `entry` is what it tells programs."""

    def write(self, data: bytes) -> int:
        """Write; return how much was taken. Raises BlockingIOError; OSError if nobody reads."""


class Log:
    """The lines for a sink; what it does not take now waits, in order."""

    def __init__(self, sink: Sink, level: str) -> None:
        self.sink = sink
        self.choose(level)
        self.waiting: deque[bytes] = deque()  # lines that the sink has not taken
        self._dropped = 0

    def choose(self, level: str) -> None:
        """Set the lowest level to write; audit records are always written."""
        self._chosen = {"audit", *_LEVELS[: _LEVELS.index(level) + 1]}

    def add(self, level: str, text: str, entry: Entry | None = None) -> None:
        """Take a line; control characters are escaped, so that one line stays one."""
        if level not in self._chosen:
            return
        if len(self.waiting) >= WAITING_MAX:
            self._dropped += 1
            return
        if self._dropped:
            self.waiting.append(self.sink.line(_PRIORITY["warning"], f"log: {self._dropped} lines were lost"))
            self._dropped = 0
        if len(text) > LINE_MAX:
            text = f"{text[:LINE_MAX]}... ({len(text) - LINE_MAX} characters cut)"
        self.waiting.append(self.sink.line(_PRIORITY[level], printable(text), entry))

    def write(self) -> bool:
        """Write what the sink takes; return whether to wait until it takes more."""
        while self.waiting:
            line = self.waiting[0]
            try:
                count = self.sink.write(line)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    self._dropped += 1  # it could never be sent, and would block those behind it
                    self.waiting.popleft()
                    continue
                return False  # nobody reads: it waits for the next line; if too many wait, they are dropped and counted
            if count < len(line):
                self.waiting[0] = line[count:]
            else:
                self.waiting.popleft()
        return False


class Stderr:
    """A descriptor; `prefixed`: each line begins with <level> for the service manager (sd-daemon(3))."""

    def __init__(self, fd: int, *, prefixed: bool) -> None:
        mode = os.fstat(fd).st_mode
        self.waits_while_frozen = stat.S_ISREG(mode)
        self._prefixed = prefixed
        self._socket = socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(mode) else None
        self._fd = self._socket.fileno() if self._socket else _open_again(fd)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def line(self, priority: int, text: str, entry: Entry | None = None) -> bytes:
        """Return the bytes of one line."""
        return f"{f'<{priority}>' if self._prefixed else ''}virtagentd: {text}\n".encode(errors="backslashreplace")

    def write(self, data: bytes) -> int:
        """Write; return how much was taken."""
        if self._socket:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._fd, data)


class Datagrams:
    """A unix datagram socket at `path`; `form` makes a datagram of priority, text, and what the line tells programs."""

    waits_while_frozen = False

    def __init__(self, path: str, form: Callable[[int, str, Entry | None], bytes]) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._form = form

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def line(self, priority: int, text: str, entry: Entry | None = None) -> bytes:
        """Return one datagram."""
        return self._form(priority, text, entry)

    def write(self, data: bytes) -> int:
        """Send one datagram, connecting if need be; return its size."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            raise
        except OSError:
            # Not connected yet; or the reader has ended, and another one may be there now.
            self._socket.connect(self._path)
            return self._socket.send(data)


def syslog(path: str = SYSLOG) -> Datagrams:
    """Return the sink for a syslog daemon (RFC 3164)."""
    tag = f"virtagentd[{os.getpid()}]"
    return Datagrams(
        path, lambda priority, text, _: f"<{_DAEMON | priority}>{tag}: {text}".encode(errors="backslashreplace")
    )


def _open_again(fd: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        # It cannot be opened (a terminal of another user), so it is shared, and blocks if its owner made it so.
        return os.dup(fd)
