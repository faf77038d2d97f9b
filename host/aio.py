"""A host's hold on one agent, for asyncio: the same as `client.py` and `wire.py` from an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from . import calls
from .calls import Call
from .errors import FreezeBroken, HostError
from .holding import Freeze, Holding, Pause, Script, Wanted, note
from .link import Command, Conversation, Link, Look, Open, Receive, Send, Step
from .methods import Methods
from .transports import Endpoint, refused
from .wire import CHUNK, domain_of, left_until, readable

T = TypeVar("T")
S = TypeVar("S")

_ROOM_AGAIN = 0.01


class AsyncAgent(Methods):
    """One agent by its URL, for asyncio: like `Agent`, and each method is awaited. Calls of tasks take turns."""

    def _set_up(self, endpoint: Endpoint) -> None:
        self._wire = AsyncWire(endpoint)
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> AsyncAgent:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._link.open = False
        self._wire.close()

    async def carry_out(self, call: Call[T], timeout: float | None = None) -> T:
        """Return what the call returns; `timeout` in the place of the agent's."""
        async with self._lock:
            return await self._wire.run(self._link, self._link.perform(call, timeout))

    @contextlib.asynccontextmanager
    async def frozen(
        self,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        strict: bool = False,
        hold: float | None = None,
        extend: bool = False,
        sync_limit: float | None = None,
        freeze_limit: float | None = None,
        thaw_wait: float = calls.THAW_WAIT,
    ) -> AsyncIterator[Freeze]:
        """Hold the guest frozen while the block runs: see `Agent.frozen`. The hold is extended by a task."""
        wanted = Wanted(include, exclude, strict, hold, sync_limit, freeze_limit)
        holding = Holding(self.url, wanted, thaw_wait=thaw_wait)
        freeze = await self.play(holding.begin())
        extender = asyncio.ensure_future(self.extend(holding)) if extend else None
        try:
            yield freeze
        except BaseException as error:
            try:
                await self._end(holding, extender)
            except FreezeBroken as broken:
                note(error, f"besides: {broken}")
            raise
        else:
            await self._end(holding, extender)

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
        """Extend the hold until this is cancelled; `apart` from other calls, on a connection of its own."""
        # A channel that takes one client at a time has no second connection: then it is done on the first.
        alone = not apart
        async with AsyncAgent(self.url, **self._options) as own:

            async def take(step: Call[Any] | Pause) -> Any:
                if isinstance(step, Pause):
                    return await asyncio.sleep(step.seconds)
                nonlocal alone
                try:
                    if not alone:
                        return await own.carry_out(step, holding.patience)
                except HostError:
                    alone = True
                return await self.carry_out(step, 4 * holding.patience)

            await drive_async(holding.extension(), take)


async def drive_async(script: Generator[S, Any, T], take: Callable[[S], Awaitable[Any]]) -> T:
    """Like `drive`, for an event loop."""
    try:
        step = next(script)
        while True:
            try:
                found = await take(step)
            except BaseException as error:  # noqa: BLE001 - the script decides, and raises it again
                step = script.throw(error)
            else:
                step = script.send(found)
    except StopIteration as done:
        value: T = done.value
        return value


class AsyncWire:
    """A connection that an event loop waits on."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._socket: socket.socket | None = None
        self._domain = domain_of(endpoint)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._domain is not None:
            self._domain.close()

    async def run(self, link: Link, conversation: Conversation[T]) -> T:
        """Return what the conversation comes to, and keep the connection only if the link says so."""
        try:
            return await drive_async(conversation, self._take)
        finally:
            if not link.open:
                self.close()

    async def _take(self, step: Step) -> Any:
        loop = asyncio.get_running_loop()
        match step:
            case Open(seconds):
                self.close()
                self._socket = await _connect(self._endpoint, seconds)
                return None
            case Command(text, deadline):
                assert self._domain is not None
                left = left_until(deadline)
                return await _until(deadline, asyncio.wrap_future(self._domain.ask(text, left)))
        sock = self._socket
        assert sock is not None, f"{step} without a connection"
        match step:
            case Send(data, deadline):
                try:
                    await _until(deadline, loop.sock_sendall(sock, data))
                except ConnectionError:
                    return False
                return True
            case Receive(deadline):
                return await _until(deadline, loop.sock_recv(sock, CHUNK))
            case Look():
                return readable(sock)


async def _connect(endpoint: Endpoint, seconds: float) -> socket.socket:
    deadline = time.monotonic() + seconds
    try:
        sock = socket.socket(endpoint.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise refused(endpoint, error, seconds) from None
    try:
        if endpoint.family != socket.AF_UNIX:
            await _until(deadline, asyncio.get_running_loop().sock_connect(sock, endpoint.address))
            return sock
        while True:
            # No event tells of room in a unix listener's queue: connect(2) says EAGAIN, and has to be tried again.
            with contextlib.suppress(BlockingIOError):
                sock.connect(endpoint.address)
                return sock
            await asyncio.sleep(min(_ROOM_AGAIN, left_until(deadline)))
    except OSError as error:
        sock.close()
        raise refused(endpoint, error, seconds) from None
    except BaseException:
        sock.close()
        raise


async def _until(deadline: float, doing: Awaitable[T]) -> T:
    # asyncio.wait_for of Python 3.11 loses a cancellation that comes together with the result.
    task = asyncio.ensure_future(doing)
    try:
        await asyncio.wait([task], timeout=max(0.0, deadline - time.monotonic()))
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    if task.cancelled():
        raise TimeoutError
    return task.result()
