"""Ports: character devices (a virtio port, a serial line) with the host at the other end, one conversation at a time.

A virtio port whose host end is closed is readable, writable never, and hung up all the time; a loop that waits for it
as for a socket would spin. So each port lies in an epoll of its own, edge-triggered, and the loop waits for that: it is
ready once when the kernel wakes the port's queue (the host came, went, wrote or read) and not again. `arm` asks anew
for what is there already, so nobody has to read until there is no more.

A port stays open while the host is away: the host sees an agent there, and no other process takes the port. A terminal
that was hung up, or a port that was unplugged, is dead: it is closed, and its path looked at again when that changes.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import termios

from ..core.events import Peer
from .connection import Connection
from .path_watch import PathWatch

VIRTIO = "/dev/virtio-ports/org.qemu.guest_agent.0"
AGAIN = 1.0  # seconds until a second look at a busy port: the kernel tells of a close just before it has happened
BLIND = 10.0  # seconds between two looks where inotify cannot be had
_BASE = select.EPOLLIN | select.EPOLLET
_Identity = tuple[int, int, int, int]


class CharDevice:
    """A port, there or not; what reads and writes on it is a `Port` of channel.py.

    Either it is open and `fileno` is to be waited for, or it is not, `why` says so, and `watch` is to be waited for.
    `dead` and `at_end` tell what the last read or write met; a `terminal` at its end is dead.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.path = spec.partition(":")[2] or VIRTIO
        self.peer = Peer(spec, "host")
        self.watch: PathWatch | None = None
        self.why = ""
        self.look_at: float | None = None
        self.talk: Connection | None = None
        self.dead = False
        self.at_end = False
        self._fd = -1
        self._edges: select.epoll | None = None
        self._mask = 0
        self.terminal = False
        self._heard = False
        self._is: _Identity | None = None

    # -- coming and going

    def look(self, now: float, *, again: bool) -> bool:
        """Open the port or watch for it; return whether it is open. `again` says that only a deadline asks."""
        self.close_watch()
        died, self._is = None if self._heard else self._is, None
        self.look_at = None
        try:
            self.watch = PathWatch(self.path)
        except OSError as error:
            self.why, self.look_at = f"cannot be waited for: inotify: {error.strerror}", now + BLIND
        try:
            self._open(died)
        except OSError as error:
            self.why = str(error.strerror) if self.watch else f"{error.strerror}, and {self.why}"
            if error.errno == errno.EBUSY and not again and self.look_at is None:
                self.look_at = now + AGAIN
            return False
        self.close_watch()
        self.why, self.look_at = "", None
        return True

    def _open(self, died: _Identity | None) -> None:
        about = os.stat(self.path)
        found = about.st_dev, about.st_ino, about.st_rdev, about.st_ctime_ns
        if not stat.S_ISCHR(about.st_mode):
            raise OSError(errno.ENODEV, "it is no character device")
        if found == died:
            raise OSError(errno.EIO, "it was at its end as soon as it was opened")
        fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        edges = select.epoll()
        try:
            self.terminal = os.isatty(fd)
            if self.terminal:
                _make_raw(fd)
            edges.register(fd, _BASE)
        except (OSError, termios.error) as error:
            if self.watch:
                self.watch.forget_end()
            edges.close()
            os.close(fd)
            raise OSError(*error.args[:2]) from None
        self._fd, self._edges, self._mask, self._is = fd, edges, _BASE, found
        self.dead = self.at_end = self._heard = False

    def close(self) -> None:
        """Close the port; a terminal first sends what it has taken."""
        if self._edges is not None:
            self._edges.close()
            self._edges = None
            os.close(self._fd)
            self._fd = -1

    def close_watch(self) -> None:
        """Watch no more."""
        if self.watch is not None:
            self.watch.close()
            self.watch = None

    def drop(self) -> None:
        """Drop what a terminal has not sent: it is not for the next host, and closing would wait until it is sent."""
        try:
            if self.terminal:
                termios.tcflush(self._fd, termios.TCOFLUSH)
        except termios.error:
            self.dead = True  # hung up

    # -- while it is open

    def fileno(self) -> int:
        """Return the descriptor that is readable once for each thing that happened."""
        assert self._edges is not None
        return self._edges.fileno()

    def happened(self) -> bool:
        """Take note of what happened; return whether nobody is at the other end."""
        assert self._edges is not None
        return any(event & select.EPOLLHUP for _, event in self._edges.poll(0))

    def arm(self, *, reading: bool, writing: bool) -> None:
        """Be ready again for what is there already, too. What is not wanted must not be armed again: it stays there."""
        mask = _BASE | select.EPOLLOUT * writing
        if self._edges is not None and (reading or mask != self._mask):
            self._edges.modify(self._fd, mask)
            self._mask = mask

    def recv(self, size: int) -> bytes:
        """Read; empty if the host is gone. Raises BlockingIOError, OSError if the port is dead."""
        self.at_end = False
        try:
            data = os.read(self._fd, size)
        except BlockingIOError:
            raise
        except OSError:
            self.dead = True
            raise
        self._heard |= bool(data)
        self.at_end = not data
        self.dead |= self.at_end and self.terminal
        return data

    def send(self, data: memoryview) -> int:
        """Write what the port takes; return how much. Raises BlockingIOError, OSError if the port is dead."""
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            raise
        except OSError:
            self.dead = True
            raise


def _make_raw(fd: int) -> None:
    """Have the terminal change no byte and give no signal, at the speed that it has; drop what came before.

    Without CLOCAL a line whose host is away would be hung up. VMIN 1: a read of nothing must not look like the end.
    """
    state = termios.tcgetattr(fd)
    state[0] = termios.IGNBRK
    state[1] = 0
    changed = termios.CSIZE | termios.PARENB | termios.HUPCL
    state[2] = state[2] & ~changed | termios.CS8 | termios.CREAD | termios.CLOCAL
    state[3] = 0
    state[6][termios.VMIN], state[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSANOW, state)
    termios.tcflush(fd, termios.TCIFLUSH)
