"""One guest of another host, asked through the connection that its group has to the relay there: for its progress.

Its answers are checked as those of any guest are; a record that would keep the connection from what is urgent, the
freeze and the thaw, is not passed on.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from .ssh_process import Remote
from .transports import Endpoint

if TYPE_CHECKING:
    from .libvirt_domain import Domain
    from .ssh_guest import SshGuest

RECORD_MAX = 256 << 10  # characters of one record
_APART, _APART_EACH = 0.2, 0.002


def apart(guests: int) -> float:
    """Return the seconds between two records of a guest, of so many that are followed by relays: 500 records a second.

    One takes the coordinator half a millisecond, and what it does when all are frozen must not wait for them.
    """
    return max(_APART, _APART_EACH * guests)


class Through:
    """The `Io` for one agent behind a relay that is there already, which carries whole commands."""

    def __init__(self, remote: Remote, agent: str) -> None:
        self._remote, self._agent = remote, agent

    async def ask(self, domain: Domain | SshGuest, text: str, seconds: float) -> str:
        return await self._remote.call(self._agent, text, seconds, most=RECORD_MAX)

    async def connect(self, endpoint: Endpoint, seconds: float) -> socket.socket:
        raise AssertionError(f"a connection of its own to {endpoint.url}, in {seconds:g} s")

    async def send(self, sock: socket.socket, data: bytes, seconds: float) -> None:
        raise AssertionError(f"{len(data)} bytes for {sock}, in {seconds:g} s")

    async def receive(self, sock: socket.socket, seconds: float) -> bytes:
        raise AssertionError(f"bytes of {sock}, in {seconds:g} s")
