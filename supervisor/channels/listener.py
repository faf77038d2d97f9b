"""Listening sockets: a unix socket for those who may open it, a vsock port for the hypervisor's host.

A listener that cannot accept (no descriptor is left, or there are too many clients) pauses: otherwise epoll would
report the waiting client all the time. It goes on when something has ended, at the latest after `PAUSE`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct

from ..core.events import Peer
from ..io.ours import why_not_ours
from ..io.poller import NEWCOMERS, READ
from ..io.troubles import reason
from .admission import admits
from .transport import Hub, Socket

PAUSE = 1.0  # seconds until a listener that could not accept tries again
BACKLOG = 128
HOST_CID = 2  # VMADDR_CID_HOST
STRANGERS_MAX = 64  # CIDs that are remembered as named in the log


class PeerRejected(Exception):
    """A peer that may not connect was rejected; one sentence, empty if the log has it already."""


class Listener:
    """A listening socket, with its path if it is a unix socket."""

    def __init__(self, spec: str, sock: socket.socket, path: str = "", *, any_cid: bool = False) -> None:
        self.spec = spec
        self.sock = sock
        self.path = path
        self.any_cid = any_cid
        self.strangers: set[int] = set()
        self._hub: Hub
        self._paused = True

    @classmethod
    def open(cls, spec: str, *, any_cid: bool = False) -> Listener:
        """Listen at `unix:PATH` or `vsock:PORT`; raise OSError, with the reason as its strerror."""
        scheme, _, rest = spec.partition(":")
        if scheme == "vsock":
            return cls(spec, _vsock(int(rest)), any_cid=any_cid)
        return cls(spec, _unix(rest), rest)

    def accept(self) -> tuple[socket.socket, Peer] | None:
        """Accept one peer, None if nobody waits. Raises PeerRejected, or OSError if none can be had (EMFILE).

        A peer that came and of which a call then failed is rejected, too; that failure is the cause of PeerRejected.
        """
        try:
            sock, address = self.sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        try:
            return sock, self._identify(sock, address)
        except PeerRejected:
            sock.close()
            raise
        except Exception as error:
            sock.close()
            raise PeerRejected("") from error

    def _identify(self, sock: socket.socket, address: tuple[int, int]) -> Peer:
        if self.path:
            pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            who = f"pid:{pid},uid:{uid}"
        else:
            cid = address[0]
            if cid != HOST_CID and not self.any_cid:
                raise PeerRejected(self._about(cid))
            who = f"cid:{cid}"
        sock.setblocking(False)
        return Peer(self.spec, who)

    def _about(self, cid: int) -> str:
        """Return what the log is to say about a CID; only once for each, so that nobody can fill the log."""
        if cid in self.strangers or len(self.strangers) >= STRANGERS_MAX:
            return ""
        self.strangers.add(cid)
        return f"CID {cid} was turned away: only the host, CID {HOST_CID}, may connect without vsock-any"

    def serve(self, hub: Hub) -> None:
        """Begin to accept hosts."""
        self._hub = hub
        self._resume()

    def due(self) -> None:
        """Accept again after a pause."""
        self._resume()

    def has_room(self) -> None:
        """Accept again, if that was put off."""
        if self._paused:
            self._hub.timers.cancel(("listener", self.spec))
            self._resume()

    def _resume(self) -> None:
        try:
            self._hub.poller.register(self.sock.fileno(), NEWCOMERS, READ, self._on_newcomer)
            self._paused = False
        except OSError as error:
            self._hub.log.add("warning", f"{self.spec}: nobody is accepted for now: {reason(error)}")
            self._hub.timers.arm(("listener", self.spec), self._hub.clock() + PAUSE)

    def _pause(self) -> None:
        self._paused = True
        self._hub.timers.arm(("listener", self.spec), self._hub.clock() + PAUSE)
        self._hub.poller.unregister(self.sock.fileno())

    def _on_newcomer(self) -> None:
        hub = self._hub
        if admits(hub.same_channel(self.spec), hub.config.max_clients) is None and not hub.make_room(self.spec):
            self._pause()
            return
        try:
            accepted = self._accept()
        except PeerRejected as rejected:
            if isinstance(rejected.__cause__, Exception):
                hub.troubles.tell(f"{self.spec}: a client was turned away", rejected.__cause__)
            elif text := str(rejected):
                hub.log.add("warning", f"{self.spec}: {text}")
            return
        except OSError as error:
            hub.log.add("warning", f"{self.spec}: accept: {error.strerror}")
            self._pause()
            return
        if accepted is not None:
            while hub.same_channel(self.spec) >= hub.config.max_clients and hub.make_room(self.spec):
                pass
            self._begin(*accepted)

    def _accept(self) -> tuple[socket.socket, Peer] | None:
        """Accept one peer as `accept` does; where no descriptor can be had, at the cost of an idle one or a reserve."""
        hub = self._hub
        while True:
            try:
                return self.accept()
            except OSError as error:
                none_left = error.errno in (errno.EMFILE, errno.ENFILE)
                if not none_left or not (hub.make_room(self.spec) or hub.descriptors.lend()):
                    raise

    def _begin(self, sock: socket.socket, peer: Peer) -> None:
        """Begin the connection; if that goes wrong it is over."""
        transport = None
        try:
            transport = Socket(sock, peer, self._hub)
            self._hub.begin(transport)
        except Exception as error:  # noqa: BLE001 - the boundary around one of many (promise 11)
            self._hub.troubles.tell(f"{self.spec}: a connection of {peer.who} was turned away", error)
            if transport is None:
                sock.close()
            else:
                transport.finish()

    def close(self) -> None:
        """Stop listening, and remove the socket's name."""
        self.sock.close()
        if self.path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


def _unix(path: str) -> socket.socket:
    """Listen at a path with mode 0600, and replace a socket on which nobody answers any more."""
    if wrong := why_not_ours(path):
        raise OSError(errno.EPERM, f"{wrong}; anybody there could put another socket in its place")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _unlink_stale(path)
        before = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _vsock(port: int) -> socket.socket:
    if not hasattr(socket, "AF_VSOCK"):
        raise OSError(errno.EAFNOSUPPORT, "this Python has no vsock")
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            raise OSError(error.errno, "this kernel has no vsock (module vsock)") from None
        raise
    try:
        sock.bind((socket.VMADDR_CID_ANY, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _unlink_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            if not stat.S_ISSOCK(os.stat(path).st_mode):  # connect(2) refuses what is no socket, too
                raise OSError(errno.EEXIST, "there is something already, and it is no socket") from None
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "another process listens there")
