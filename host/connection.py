"""The connection to one agent: it does the I/O that a session asks for, and each step in time.

It is written once, as coroutines. Only an `Io` waits: that of `client.py` blocks, so its coroutines never suspend and
`finish` can run them without an event loop; that of `aio.py` awaits.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .client_session import ClientSession, Command, Look, Open, Receive, Send, Step, Steps
from .transports import Endpoint

if TYPE_CHECKING:
    from .libvirt_domain import Domain
    from .ssh_guest import SshGuest

T = TypeVar("T")
S = TypeVar("S")

CHUNK = 64 << 10


async def drive_async(script: Generator[S, Any, T], take: Callable[[S], Awaitable[Any]]) -> T:
    """Run `script`: `take` does each step that it yields, and the script gets the result or the exception."""
    try:
        step = next(script)
        while True:
            try:
                found = await take(step)
            except BaseException as error:  # noqa: BLE001 - an interruption, too: the script decides, and raises it again
                step = script.throw(error)
            else:
                step = script.send(found)
    except StopIteration as done:
        value: T = done.value
        return value


def drive(script: Generator[S, Any, T], take: Callable[[S], Any]) -> T:
    """Run `script` as `drive_async` does, with a `take` that blocks."""

    async def take_now(step: S) -> Any:
        return take(step)

    return finish(drive_async(script, take_now))


def finish(running: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return its value."""
    try:
        running.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    running.close()
    raise AssertionError("a coroutine that must not suspend did")


class Io(Protocol):
    """What waits. Each method raises TimeoutError when the `seconds`, which are more than 0, have passed."""

    async def connect(self, endpoint: Endpoint, seconds: float) -> socket.socket:
        """Return a connected socket; raise Unreachable."""

    async def send(self, sock: socket.socket, data: bytes, seconds: float) -> None:
        """Send all of `data`."""

    async def receive(self, sock: socket.socket, seconds: float) -> bytes:
        """Return the next bytes, b"" at the end."""

    async def ask(self, domain: Domain | SshGuest, text: str, seconds: float) -> str:
        """Return the answer that is passed on."""


class Connection:
    """A connection to one endpoint, which carries one call after another."""

    def __init__(self, endpoint: Endpoint, io: Io) -> None:
        self._endpoint = endpoint
        self._io = io
        self._socket: socket.socket | None = None
        self._domain: Domain | SshGuest | None = None
        if endpoint.far is not None:
            from .ssh_guest import SshGuest  # asyncio takes long

            self._domain = SshGuest(endpoint.far)
        if endpoint.domain:
            from .libvirt_domain import Domain  # rarely needed, and slow to import

            self._domain = Domain(endpoint.domain, endpoint.connect)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._domain is not None:
            self._domain.close()

    async def run(self, session: ClientSession, steps: Steps[T]) -> T:
        """Do the steps and return their value; leave the connection open only if the session says so."""
        try:
            return await drive_async(steps, self._take)
        finally:
            if not session.open:
                self.close()

    async def _take(self, step: Step) -> Any:
        match step:
            case Open(seconds):
                self.close()
                self._socket = await self._io.connect(self._endpoint, seconds)
                return None
            case Command(text, deadline):
                assert self._domain is not None
                return await self._io.ask(self._domain, text, left_until(deadline))
        sock = self._socket
        assert sock is not None, f"{step} without a connection"
        match step:
            case Send(data, deadline):
                try:
                    await self._io.send(sock, data, left_until(deadline))
                except ConnectionError:
                    return False
                return True
            case Receive(deadline):
                return await self._io.receive(sock, left_until(deadline))
            case Look():
                return readable(sock)


def readable(sock: socket.socket) -> bool:
    """Return whether there is something to receive now, or the end of the stream."""
    now = select.poll()
    now.register(sock, select.POLLIN)
    return bool(now.poll(0))


def left_until(deadline: float) -> float:
    """Return the seconds that are left; raise TimeoutError if no time is left."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
