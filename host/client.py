"""A host's hold on one agent: typed calls over a socket, each with a time-out of its own. Never trusts the guest."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import select
import socket
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

from . import calls
from .calls import Call
from .errors import Lost, TimedOut
from .records import Capabilities, Plan, Status
from .transports import DEFAULT_URL, connect, parse
from .xmlrpc import REPLY_MAX, Exchange

T = TypeVar("T")

ANSWER = 30.0
_CHUNK = 64 << 10


class Agent:
    """One agent by its URL. It connects at the first call and keeps the connection; not for two threads at once.

    `timeout` is how many seconds one call may take, connecting and waiting included; a wait longer than that is
    shortened. Without it a call may take ANSWER seconds and, on top, the wait that it asks the agent for.
    Every call raises Fault (the agent refused or failed), a HostError (Unreachable, Lost, TimedOut, BadReply), or
    Unsendable if an argument cannot travel. The constructor raises ValueError if `url` is none.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float | None = None,
        connect_timeout: float = 5.0,
        reply_max: int = REPLY_MAX,
    ) -> None:
        self._endpoint = parse(url)
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._reply_max = reply_max
        name = secrets.token_hex(4)
        self._tags = (f"{name}-{n}" for n in itertools.count())
        self._socket: socket.socket | None = None

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ping(self) -> str:
        """Return "dummy"."""
        return self._do(calls.ping())

    def capabilities(self) -> Capabilities:
        """Return the agent's version and methods."""
        return self._do(calls.capabilities())

    def plan(self, include: Sequence[str] = (), exclude: Sequence[str] = (), *, strict: bool = False) -> Plan:
        """Return what `freeze` would do, freezing nothing."""
        return self._do(calls.plan(include, exclude, strict=strict))

    def freeze(
        self,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        strict: bool = False,
        wait: float | None = None,
        sync_limit: float | None = None,
        freeze_limit: float | None = None,
        hold_limit: float | None = None,
    ) -> int:
        """Freeze, and return the number of file systems frozen; the agent thaws them when the hold limit passes.

        The call waits until the agent's own limits end the job, or `wait` seconds: then Fault IN_PROGRESS, and the job
        goes on, as it does after TimedOut.
        """
        if wait is None:
            wait = calls.FREEZE_WAIT + (sync_limit or 0) + (freeze_limit or 0)
        return self._do(
            calls.freeze(
                include,
                exclude,
                strict=strict,
                wait=self._within(wait),
                sync_limit=sync_limit,
                freeze_limit=freeze_limit,
                hold_limit=hold_limit,
            )
        )

    def thaw(self, wait: float = calls.THAW_WAIT) -> int:
        """Thaw, or cancel a freeze, and return the number of file systems thawed.

        Raises Fault FREEZE_BROKEN if they were not held frozen all the time: a snapshot taken meanwhile is worthless.
        """
        return self._do(calls.thaw(self._within(wait)))

    def status(self, since: int | None = None, wait: float = calls.STATUS_WAIT) -> Status:
        """Return the status record: at once, or with `since` when its `seq` is another, at the latest after `wait`."""
        return self._do(calls.status(since, 0.0 if since is None else self._within(wait)))

    def state(self) -> int:
        """Return the number of the freeze state (`records.STATES`)."""
        return self._do(calls.state())

    def hold(self, seconds: float) -> float:
        """Extend the hold to `seconds` from now, as far as the agent allows; return the seconds left."""
        return self._do(calls.hold(seconds))

    def getfile(self, path: str) -> bytes:
        """Return the contents of a file in the guest, at most 16 MiB."""
        return self._do(calls.getfile(path))

    def getdmesg(self) -> str:
        """Return the end of the guest's kernel log."""
        return self._do(calls.getdmesg())

    def shutdown(self, mode: str) -> str:
        """Shut the guest down, after a thaw: "halt", "powerdown" or "reboot"."""
        return self._do(calls.shutdown(mode))

    def call(self, method: str, *params: Any, wait: float = 0.0) -> Any:
        """Return what any method returned; `wait` is how long the agent was asked to keep the answer back."""
        return self._do(Call(method, params, lambda value: value, wait))

    def _within(self, wait: float) -> float:
        """Return the wait to ask for: a tenth of the time-out is left for the answer to arrive."""
        return wait if self._timeout is None else min(wait, self._timeout * 0.9)

    def _do(self, call: Call[T]) -> T:
        seconds = ANSWER + call.wait if self._timeout is None else self._timeout
        deadline = time.monotonic() + seconds
        exchange = Exchange(call.method, call.params, tag=next(self._tags), reply_max=self._reply_max)
        try:
            return call.take(self._converse(exchange, deadline))
        except TimeoutError:
            raise TimedOut(
                f"{call.method} had no answer from {self._endpoint.url} within {seconds:g} s; "
                "give it a longer time-out, or see whether the guest runs"
            ) from None
        except OSError as error:
            raise Lost(f"the connection to {self._endpoint.url} is lost ({error.strerror}); call again") from None
        finally:
            if not exchange.reusable:
                self.close()

    def _converse(self, exchange: Exchange, deadline: float) -> Any:
        sock = self._connected(deadline)
        sock.settimeout(_left(deadline))
        # An agent that refuses may close before it has read all, and its answer is still to be read.
        with contextlib.suppress(ConnectionError):
            sock.sendall(exchange.request)
        reply = None
        while reply is None:
            sock.settimeout(_left(deadline))
            reply = exchange.receive(sock.recv(_CHUNK))
        return reply.value

    def _connected(self, deadline: float) -> socket.socket:
        """Return the kept connection, or a new one if the agent has closed it or sent what nobody asked for."""
        if self._socket is not None and _readable(self._socket):
            self.close()
        if self._socket is None:
            self._socket = connect(self._endpoint, min(_left(deadline), self._connect_timeout))
        return self._socket


def _readable(sock: socket.socket) -> bool:
    now = select.poll()
    now.register(sock, select.POLLIN)
    return bool(now.poll(0))


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
