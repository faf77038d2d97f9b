"""Character devices (a virtio port, a serial line) with the host at the other end, one connection at a time.

A virtio port whose host end is closed is readable, never writable, and hung up all the time; a loop that waited for it
as for a socket would spin. So each device is in an edge-triggered epoll of its own, and the loop waits for that: it is
ready once each time the kernel wakes the queue of the device (the host came, went, wrote or read). `arm` makes it
ready again for what is there already, so nobody has to read until there is no more (ADR 0017).

A device stays open while the host is away, so that the host sees an agent and no other process takes the device. A
terminal that was hung up, or a port that was unplugged, is dead: it is closed, and opened again when its path changes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import termios
from functools import partial

from ..core.events import Peer
from ..io.poller import HOSTS, PATHS, READ
from ..io.troubles import reason
from .path_watch import PathWatch
from .transport import End, Hub

VIRTIO = "/dev/virtio-ports/org.qemu.guest_agent.0"
AGAIN = 1.0  # seconds until a second look at a busy device: the kernel announces a close just before it happens
BLIND = 10.0  # seconds between two looks where inotify cannot be used
_PASSES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EAGAIN, errno.EINTR)
"""Why an open failed that no change of the path ends."""
_BASE = select.EPOLLIN | select.EPOLLET
_Identity = tuple[int, int, int, int]


class CharDevice:
    """A device, present or not: the endpoint that hosts come to, and the transport of the host that is there.

    Either it is open and the loop waits for it; or it is closed, `why` says why, and the loop waits for `watch`.
    `dead` and `at_end` say what the last read or write met; a `terminal` at its end is dead.
    """

    _hub: Hub

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.path = spec.partition(":")[2] or VIRTIO
        self.peer = Peer(spec, "host")
        self.watch: PathWatch | None = None
        self.why = ""
        self.dead = False
        self.at_end = False
        self._fd = -1
        self._edges: select.epoll | None = None
        self._mask = 0
        self.terminal = False
        self._heard = False
        self._is: _Identity | None = None

    # -- coming and going

    def serve(self, hub: Hub) -> None:
        """Open the device, now or as soon as that is possible; then serve the host at the other end."""
        self._hub = hub
        self._look()

    def due(self) -> None:
        """Look at the path once more."""
        self._look(again=True)

    def has_room(self) -> None:
        """Do nothing: no device waits for room."""

    def _look(self, *, again: bool = False) -> None:
        """Open the device or watch its path; `again`: only a timer asks."""
        hub, before = self._hub, self.why
        self._close_watch()
        hub.timers.cancel(("device", self.spec))
        try:
            if self._try(again=again):
                hub.poller.register(self._edges_fd(), HOSTS, READ, partial(hub.ready, self))
                hub.log.add("notice", f"{self.spec}: open")
                return
            if self.watch is not None:
                hub.poller.register(self.watch.fileno(), PATHS, READ, self._on_path)
        except OSError as error:
            self._close_fds()
            self.why = f"it cannot be waited for: {reason(error)}"
            hub.timers.arm(("device", self.spec), hub.clock() + BLIND)
        if self.why != before:
            hub.log.add("warning", f"{self.spec}: {self.why}; waiting for that to change")

    def _try(self, *, again: bool) -> bool:
        """Set the watch, then open the device; return whether it is open."""
        died, self._is = None if self._heard else self._is, None
        watch, blind = None, ""
        try:
            watch = PathWatch(self.path)  # before the look, so that nothing is missed meanwhile
        except OSError as error:
            blind = f"cannot be waited for: inotify: {error.strerror}"
        try:
            self._open(died, watch)
        except OSError as error:
            self.why = f"{error.strerror}, and {blind}" if blind else str(error.strerror)
            passes = error.errno in _PASSES
            if blind or passes or (error.errno == errno.EBUSY and not again):
                self._hub.timers.arm(("device", self.spec), self._hub.clock() + (BLIND if blind or passes else AGAIN))
            self.watch = watch
            return False
        if watch is not None:
            watch.close()
        self.why = ""
        return True

    def _on_path(self) -> None:
        try:
            changed = self.watch is None or self.watch.happened()
        except OSError as error:
            self._hub.troubles.tell(f"{self.spec}: the watch of its path is set anew", error)
            changed = True
        if changed:
            self._look()

    def _open(self, died: _Identity | None, watch: PathWatch | None) -> None:
        about = os.stat(self.path)
        found = about.st_dev, about.st_ino, about.st_rdev, about.st_ctime_ns
        if not stat.S_ISCHR(about.st_mode):
            raise OSError(errno.ENODEV, "it is no character device")
        if found == died:
            raise OSError(errno.EIO, "it was at its end as soon as it was opened")
        fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        edges = None
        try:
            edges = select.epoll()
            self.terminal = os.isatty(fd)
            if self.terminal:
                _make_raw(fd)
            edges.register(fd, _BASE)
        except (OSError, termios.error) as error:
            if watch is not None:
                watch.forget_end()
            if edges is not None:
                edges.close()
            os.close(fd)
            raise OSError(*error.args[:2]) from None
        self._fd, self._edges, self._mask, self._is = fd, edges, _BASE, found
        self.dead = self.at_end = self._heard = False

    def close(self) -> None:
        """Close the device and watch no more; a terminal first sends what it has taken."""
        self._close_watch()
        self._close_fds()

    def _close_watch(self) -> None:
        if self.watch is not None:
            self._hub.poller.unregister(self.watch.fileno())
            self._close_fds()

    def _close_fds(self) -> None:
        """Close whatever is open; a close that fails has closed all the same (close(2))."""
        if self._edges is not None:
            self._edges.close()
            self._edges = None
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
        if self.watch is not None:
            with contextlib.suppress(OSError):
                self.watch.close()
            self.watch = None

    def finish(self) -> None:
        """Be ready for the host that comes next, or for what this one says next; look anew if the device is dead."""
        if not self.dead and not self.at_end:
            try:
                self.arm(reading=True, writing=False)
            except OSError as error:
                self._hub.troubles.tell(f"{self.spec}: it is opened anew", error)
                self.dead = True
        if self.dead:
            self._hub.poller.unregister(self._edges_fd())
            self.drop_unsent()
            self.close()
            self._hub.log.add("notice", f"{self.spec}: hung up, unplugged or failed")
            self._look()

    def left_unread(self) -> bool:
        """Return False: a device does not tell what its host has read."""
        return False

    def drop_unsent(self) -> None:
        """Drop what a terminal has not sent: the next host must not get it, and a close would wait for it."""
        try:
            if self.terminal:
                termios.tcflush(self._fd, termios.TCOFLUSH)
        except termios.error:
            self.dead = True  # hung up

    # -- while it is open

    def _edges_fd(self) -> int:
        """Return the descriptor that is ready once for each event of the device."""
        assert self._edges is not None
        return self._edges.fileno()

    def happened(self) -> bool:
        """Take note of what happened; return whether nobody is at the other end."""
        assert self._edges is not None
        return any(event & select.EPOLLHUP for _, event in self._edges.poll(0))

    def arm(self, *, reading: bool, writing: bool) -> None:
        """Wait for these events, and also for what is there already (ADR 0017).

        What is not wanted must not be armed: it would be ready all the time.
        """
        mask = _BASE | select.EPOLLOUT * writing
        if self._edges is not None and (reading or mask != self._mask):
            self._edges.modify(self._fd, mask)
            self._mask = mask

    def end(self) -> End:
        """Return GONE for a terminal; UNSURE for a port, since its next host may be there unannounced (ADR 0017)."""
        return End.GONE if self.terminal else End.UNSURE

    def recv(self, size: int, /) -> bytes:
        """Read; return nothing if the host is gone. Raises BlockingIOError; OSError if the device is dead."""
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

    def send(self, data: memoryview, /) -> int:
        """Write what the device takes; return how much. Raises BlockingIOError; OSError if the device is dead."""
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            raise
        except OSError:
            self.dead = True
            raise


def _make_raw(fd: int) -> None:
    """Set the terminal to change no bytes and send no signals, at its present speed; drop what came before.

    CLOCAL keeps a line open while its host is away. VMIN 1: a read of nothing must not look like the end.
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
