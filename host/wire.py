"""The two drivers of a conversation: a thread that blocks, and an event loop. All I/O of the host's side is here."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import select
import socket
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from .libvirt_domain import Domain
from .link import Command, Conversation, Link, Look, Open, Receive, Send, Step
from .transports import Endpoint, connect, refused

T = TypeVar("T")
S = TypeVar("S")

_CHUNK = 64 << 10
_ROOM_AGAIN = 0.01


def drive(script: Generator[S, Any, T], take: Callable[[S], Any]) -> T:
    """Run `script`: have `take` do each thing that it yields, and tell it the result or what was raised."""
    try:
        step = next(script)
        while True:
            try:
                found = take(step)
            except BaseException as error:  # noqa: BLE001 - the script decides, and raises it again
                step = script.throw(error)
            else:
                step = script.send(found)
    except StopIteration as done:
        value: T = done.value
        return value


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


class Wire:
    """A connection that a thread waits on."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._socket: socket.socket | None = None
        self._domain = Domain(endpoint.domain, endpoint.connect) if endpoint.domain else None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._domain is not None:
            self._domain.close()

    def run(self, link: Link, conversation: Conversation[T]) -> T:
        """Return what the conversation comes to, and keep the connection only if the link says so."""
        try:
            return drive(conversation, self._take)
        finally:
            if not link.open:
                self.close()

    def _take(self, step: Step) -> Any:
        match step:
            case Open(seconds):
                self.close()
                self._socket = connect(self._endpoint, seconds)
                return None
            case Command(text, deadline):
                assert self._domain is not None
                left = _left(deadline)
                try:
                    return self._domain.ask(text, left).result(left)
                except concurrent.futures.TimeoutError:
                    raise TimeoutError from None  # in Python 3.10 they are two
        sock = self._socket
        assert sock is not None, f"{step} without a connection"
        match step:
            case Send(data, deadline):
                sock.settimeout(_left(deadline))
                try:
                    sock.sendall(data)
                except ConnectionError:
                    return False
                return True
            case Receive(deadline):
                sock.settimeout(_left(deadline))
                return sock.recv(_CHUNK)
            case Look():
                return _readable(sock)


class AsyncWire:
    """A connection that an event loop waits on."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._socket: socket.socket | None = None
        self._domain = Domain(endpoint.domain, endpoint.connect) if endpoint.domain else None

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
                left = _left(deadline)
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
                return await _until(deadline, loop.sock_recv(sock, _CHUNK))
            case Look():
                return _readable(sock)


async def _connect(endpoint: Endpoint, seconds: float) -> socket.socket:
    deadline = time.monotonic() + seconds
    sock = socket.socket(endpoint.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if endpoint.family != socket.AF_UNIX:
            await _until(deadline, asyncio.get_running_loop().sock_connect(sock, endpoint.address))
            return sock
        while True:
            # No event tells of room in a unix listener's queue: connect(2) says EAGAIN, and has to be tried again.
            with contextlib.suppress(BlockingIOError):
                sock.connect(endpoint.address)
                return sock
            await asyncio.sleep(min(_ROOM_AGAIN, _left(deadline)))
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


def _readable(sock: socket.socket) -> bool:
    now = select.poll()
    now.register(sock, select.POLLIN)
    return bool(now.poll(0))


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
