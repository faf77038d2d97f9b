"""Drives a conversation from a thread that blocks: the I/O that it asks for (`aio.py` does so from an event loop)."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar

from .link import Command, Conversation, Link, Look, Open, Receive, Send, Step
from .transports import Endpoint, connect

if TYPE_CHECKING:
    from .libvirt_domain import Domain

T = TypeVar("T")
S = TypeVar("S")

CHUNK = 64 << 10


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


class Wire:
    """A connection that a thread waits on."""

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
                return self._domain.wait(text, left_until(deadline))
        sock = self._socket
        assert sock is not None, f"{step} without a connection"
        match step:
            case Send(data, deadline):
                sock.settimeout(left_until(deadline))
                try:
                    sock.sendall(data)
                except ConnectionError:
                    return False
                return True
            case Receive(deadline):
                sock.settimeout(left_until(deadline))
                return sock.recv(CHUNK)
            case Look():
                return readable(sock)


def domain_of(endpoint: Endpoint) -> Domain | None:
    """Return the libvirt domain of the endpoint, None if it is a socket."""
    if not endpoint.domain:
        return None
    from .libvirt_domain import Domain  # few need it, and it takes time

    return Domain(endpoint.domain, endpoint.connect)


def readable(sock: socket.socket) -> bool:
    """Say whether there is something to receive now, be it the end."""
    now = select.poll()
    now.register(sock, select.POLLIN)
    return bool(now.poll(0))


def left_until(deadline: float) -> float:
    """Return the seconds that are left; raise TimeoutError if none are."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
