"""The client of one agent for asyncio: the same as `client.py`, on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from .calls import Call, Texts
from .connection import CHUNK, Connection, drive_async, left_until
from .errors import FreezeBroken
from .following import Following
from .holding import CallOnOwnConnection, Freeze, Holding, Options, Pause, Script, Wanted, note
from .methods import Methods
from .transports import Endpoint, Far, parse, refused

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .libvirt_domain import Domain
    from .ssh_guest import SshGuest
    from .ssh_process import Remote

T = TypeVar("T")

_ROOM_AGAIN = 0.01


class AsyncAgent(Methods):
    """One agent by its URL, for asyncio: like `Agent`, but each method is awaited. Calls of tasks take turns."""

    def _set_up(self, endpoint: Endpoint) -> None:
        self._connection = Connection(endpoint, _Awaiting())
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> AsyncAgent:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._session.open = False
        self._connection.close()

    async def carry_out(self, call: Call[T], timeout: float | None = None) -> T:
        """Carry out the call and return its value; `timeout` replaces the agent's."""
        until = self._session.turn_until(timeout)
        await self._take_turn(call, until)
        try:
            return await self._connection.run(self._session, self._session.perform(call, timeout, until))
        finally:
            self._lock.release()

    async def _take_turn(self, call: Call[Any], until: float | None) -> None:
        if until is None:
            await self._lock.acquire()
            return
        turn = asyncio.ensure_future(self._lock.acquire())
        try:
            await _within(until - time.monotonic(), turn)
        except BaseException as error:
            if not turn.cancelled():
                self._lock.release()
            if isinstance(error, TimeoutError | asyncio.TimeoutError):
                raise self._session.no_turn(call) from None
            raise

    @contextlib.asynccontextmanager
    async def frozen(
        self, include: Texts = (), exclude: Texts = (), **options: Unpack[Options]
    ) -> AsyncIterator[Freeze]:
        """Hold the guest frozen while the block runs: see `Agent.frozen`. Tasks extend the hold and call `progress`."""
        wanted = Wanted(include, exclude, **options)
        if (far := parse(self.url).far) is not None:
            from .hypervisor import frozen_alone  # rarely needed

            async with frozen_alone(far, wanted, relayed) as freeze:
                yield freeze
            return
        holding = Holding(self.url, wanted)
        async with Following([AsyncAgent(self.url, **self._options)], wanted.progress) as following:
            freeze = await self.play(holding.begin())
            following.add(self.url, freeze.status)
            extender = asyncio.ensure_future(self.extend(holding)) if wanted.extend else None
            try:
                yield freeze
            except BaseException as error:
                try:
                    await self._end(holding, extender)
                except FreezeBroken as broken:
                    note(error, broken)
                raise
            else:
                await self._end(holding, extender)
            finally:
                following.add(self.url, freeze.ended)
                freeze.not_followed = following.failed.get(self.url, "")

    async def _end(self, holding: Holding, extender: asyncio.Future[None] | None) -> None:
        if extender is not None:
            extender.cancel()
        try:
            await self.play(holding.end())
        finally:
            if extender is not None:
                await asyncio.wait([extender])

    async def play(self, script: Script[T]) -> T:
        """Run a script of `holding`."""

        async def take(step: Call[Any] | Pause) -> Any:
            return await (asyncio.sleep(step.seconds) if isinstance(step, Pause) else self.carry_out(step))

        return await drive_async(script, take)

    async def extend(self, holding: Holding, *, apart: bool = True) -> None:
        """Extend the hold until this is cancelled; `apart`: on a connection of its own."""
        async with AsyncAgent(self.url, **self._options) as own:

            async def take(step: CallOnOwnConnection | Pause) -> Any:
                if isinstance(step, Pause):
                    return await asyncio.sleep(step.seconds)
                return await (own if step.apart else self).carry_out(step.call, step.seconds)

            await drive_async(holding.extension(apart=apart), take)


def relayed(far: Far, agent: str, remote: Remote) -> AsyncAgent:
    """Return an agent of another host, asked through the connection that there is to the relay there."""
    from .relayed import Through  # rarely needed

    one = AsyncAgent(far.guest(agent))
    one._connection = Connection(parse(one.url), Through(remote, agent))
    return one


class _Awaiting:
    """The `Io` for an event loop."""

    async def connect(self, endpoint: Endpoint, seconds: float) -> socket.socket:
        sock = None
        try:
            sock = socket.socket(endpoint.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            await _connect(sock, endpoint, time.monotonic() + seconds)
            connected, sock = sock, None
        except OSError as error:
            raise refused(endpoint, error, seconds) from None
        finally:
            if sock is not None:
                sock.close()
        return connected

    async def send(self, sock: socket.socket, data: bytes, seconds: float) -> None:
        await _within(seconds, asyncio.get_running_loop().sock_sendall(sock, data))

    async def receive(self, sock: socket.socket, seconds: float) -> bytes:
        return await _within(seconds, asyncio.get_running_loop().sock_recv(sock, CHUNK))

    async def ask(self, domain: Domain | SshGuest, text: str, seconds: float) -> str:
        return await _within(seconds, asyncio.wrap_future(domain.ask(text, seconds)))


async def _connect(sock: socket.socket, endpoint: Endpoint, deadline: float) -> None:
    if endpoint.family != socket.AF_UNIX:
        await _within(left_until(deadline), asyncio.get_running_loop().sock_connect(sock, endpoint.address))
        return
    while True:
        # No event announces room in the queue of a unix listener: connect(2) says EAGAIN and must be tried again.
        with contextlib.suppress(BlockingIOError):
            sock.connect(endpoint.address)
            return
        await asyncio.sleep(min(_ROOM_AGAIN, left_until(deadline)))


async def _within(seconds: float, doing: Awaitable[T]) -> T:
    # asyncio.wait_for in Python 3.11 loses a cancellation that comes together with the result.
    task = asyncio.ensure_future(doing)
    try:
        await asyncio.wait([task], timeout=max(0.0, seconds))
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    if task.cancelled():
        raise TimeoutError
    return task.result()
