"""How a call gets to an agent and back: connecting, finding out what the other end speaks, resynchronising, trying
again. No I/O: a script is a generator that yields what is to be done and is sent the result.

A thread or an event loop drives it (`connection.py`), so that both say the same. A request that may have been executed
is not sent again; one that cannot have been is sent again, once, on a new connection.

On each connection the other end is asked once, with a guest-sync-delimited and a guest-info. A virtagent and a stock
qemu-ga answer both, and only virtagent knows va.* methods; one that speaks only XML-RPC answers with HTTP or hangs up;
anything else is skipped until the time is up. These two commands change nothing in the guest.
"""

from __future__ import annotations

import enum
import itertools
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..agent.api.errors import Fault
from . import qemu_ga_compat, qga, xmlrpc
from .calls import Call
from .errors import BadReply, HostError, Lost, TimedOut
from .transports import Endpoint

T = TypeVar("T")

ANSWER = 30.0
SECONDS_MAX = 10_000_000.0
"""The longest wait, in seconds: no system call is sure to accept more."""
SYNC_SECONDS = 5.0
HTTP_SECONDS = 1.0
_HELLO_MAX = 64


@dataclass(frozen=True, slots=True)
class Open:
    """Close the open connection, if any, and connect within `seconds`; raise Unreachable."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Send:
    """Send `data` until `deadline` (seconds of the session's clock); return whether the other end took all of it."""

    data: bytes
    deadline: float


@dataclass(frozen=True, slots=True)
class Receive:
    """Return some bytes, b"" at the end of the stream; raise TimeoutError at `deadline`, OSError if it is lost."""

    deadline: float


@dataclass(frozen=True, slots=True)
class Look:
    """Return whether there is something to receive now, or the end of the stream."""


@dataclass(frozen=True, slots=True)
class Command:
    """Send `text` through libvirt or a relay; return the reply; raise Fault, Unreachable, Lost or TimeoutError."""

    text: str
    deadline: float


Step = Open | Send | Receive | Look | Command
Steps = Generator[Step, Any, T]
Ask = Callable[..., Steps[Any]]


class Speech(enum.Enum):
    """What the other end speaks."""

    UNKNOWN = "auto"
    XMLRPC = "xmlrpc"
    JSON = "json"


class _Unsent(Exception):
    """The other end is gone, and cannot have got the whole request."""


class ClientSession:
    """What is known about the connection to one agent. `open`: the driver is to leave the connection open.

    A `speech` other than UNKNOWN is not checked. Times are seconds of `clock`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout: float | None,
        connect_timeout: float,
        reply_max: int,
        speech: Speech = Speech.UNKNOWN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = endpoint
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._reply_max = reply_max
        self._known = Speech.JSON if endpoint.passed_on or endpoint.stock else speech
        self._clock = clock
        name = secrets.token_hex(4)
        self._tags = (f"{name}-{n}" for n in itertools.count())
        self.open = False
        self.stock = False
        self._speech = self._known
        self._dirty = self._named = False

    def turn_until(self, timeout: float | None) -> float | None:
        """Return when a call with `timeout` has waited too long for another call to end; None: never."""
        timeout = self._timeout if timeout is None else timeout
        return None if timeout is None else self._clock() + min(timeout, SECONDS_MAX)

    def no_turn(self, call: Call[Any]) -> TimedOut:
        """Return the exception for a call whose turn has not come."""
        late = TimedOut(f"{call.method} was not asked: another call to {self._endpoint.url} lasts; call again later")
        late.asked = False
        return late

    def perform(self, call: Call[T], timeout: float | None = None, until: float | None = None) -> Steps[T]:
        """Carry out `call` within `timeout` seconds if given, and before the time `until` if given.

        Returns its value. Raises Fault, a HostError, or Unsendable.
        """
        timeout = self._timeout if timeout is None else timeout
        began = self._clock()
        if timeout is not None:
            timeout = min(timeout, SECONDS_MAX) if until is None else until - began
            call = call.within(round(timeout * 0.9, 3))  # the rest is for the answer to arrive in
        seconds = min(ANSWER + call.wait, SECONDS_MAX) if timeout is None else timeout
        deadline = began + seconds
        most = self._reply_max if call.most is None else min(call.most, self._reply_max)

        asked = False

        def ask(method: str, *params: Any) -> Steps[Any]:
            nonlocal asked
            yield from self._ready(deadline)
            asked = True
            return (yield from self._ask(method, params, most, deadline))

        try:
            return call.take((yield from self._answered(call, ask, deadline, began, seconds)))
        except HostError as error:
            error.asked = asked
            raise

    def _answered(self, call: Call[Any], ask: Ask, deadline: float, began: float, seconds: float) -> Steps[Any]:
        try:
            yield from self._ready(deadline)
            return (yield from (qemu_ga_compat.answer if self.stock else _as_it_is)(call.method, call.params, ask))
        except TimeoutError:
            waited = min(seconds, self._clock() - began)
            raise TimedOut(
                f"{call.method} had no answer from {self._endpoint.url} within {waited:.3g} s; "
                "give it a longer time-out, or see whether the guest runs"
            ) from None
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise Lost(f"the connection to {self._endpoint.url} is lost ({why}); call again") from None

    def _ask(self, method: str, params: Sequence[Any], most: int, deadline: float) -> Steps[Any]:
        while True:
            was_open = yield from self._ready(deadline)
            try:
                return (yield from self._exchange(method, params, most, deadline))
            except _Unsent:
                if not was_open:
                    raise self._closed() from None

    def _closed(self) -> Lost:
        return Lost(f"{self._endpoint.url} closed the connection without an answer; look at its log, then call again")

    def _exchange(self, method: str, params: Sequence[Any], most: int, deadline: float) -> Steps[Any]:
        if self._speech is Speech.XMLRPC:
            by_xml = xmlrpc.Exchange(method, params, tag=next(self._tags), reply_max=most)
            return (yield from self._by_http(by_xml, deadline))
        exchange = qga.Exchange(method, params, tag=next(self._tags), reply_max=most)
        if self._endpoint.passed_on:
            return (yield from self._passed_on(exchange, deadline))
        self._dirty = True
        try:
            return (yield from self._converse(exchange, deadline)).value
        finally:
            self._named = exchange.ours
            self._dirty = not exchange.reusable
            self.open = self.open and not exchange.ended

    def _passed_on(self, exchange: qga.Exchange, deadline: float) -> Steps[Any]:
        self.open = False
        text = yield Command(exchange.request.decode(), deadline)
        self.open = True
        if (reply := exchange.receive(text.encode("utf-8", "replace") + b"\n")) is None:
            raise BadReply("the answer that was passed on is that to another command; call again")
        return reply.value

    def _by_http(self, exchange: xmlrpc.Exchange, deadline: float) -> Steps[Any]:
        try:
            return (yield from self._converse(exchange, deadline)).value
        finally:
            self.open = self.open and exchange.reusable

    def _converse(self, exchange: qga.Exchange | xmlrpc.Exchange, deadline: float) -> Steps[xmlrpc.Reply]:
        whole = yield Send(exchange.request, deadline)
        try:
            while True:
                # An agent that refuses may close before it has read everything; then its answer can still be read.
                data = yield Receive(deadline)
                if not data and not whole and not exchange.begun:
                    self.open = False
                    raise _Unsent
                if (reply := exchange.receive(data)) is not None:
                    return reply
        except ConnectionError:
            self.open = False
            if not whole and not exchange.begun:
                raise _Unsent from None
            raise

    def _ready(self, deadline: float) -> Steps[bool]:
        """Make the connection ready for a call; return whether it is an old one, which may turn out to be dead."""
        if self.open and not self._endpoint.passed_on and (yield Look()):
            # It has ended, or there are bytes on it that nobody asked for.
            self._dirty = True
            self.open = self._speech is Speech.JSON
        if self.open and self._dirty:
            try:
                yield from self._sync(min(deadline, self._clock() + SYNC_SECONDS))
            except (HostError, OSError):
                self.open = False  # nothing of the call has been sent yet
        if self.open:
            return True
        yield from self._connect(deadline)
        return False

    def _connect(self, deadline: float) -> Steps[None]:
        try:
            yield from self._introduce(deadline)
        except _Unsent:
            self.open = False
            raise self._closed() from None
        except BaseException:
            self.open = False
            raise

    def _introduce(self, deadline: float) -> Steps[None]:
        """Connect, and find out what the other end speaks."""
        self._speech = self._known
        if self._endpoint.passed_on:
            self.open = True
        else:
            yield from self._reach(deadline)
            until = min(deadline, self._clock() + SYNC_SECONDS)
            if self._speech is not Speech.XMLRPC and (yield from self._sync(until)):
                self._speech = Speech.XMLRPC
                yield from self._reach(deadline)
        self.stock = self._endpoint.stock
        if self._speech is not Speech.XMLRPC:
            self._speech = Speech.JSON
            if not self.stock:
                yield from self._tell_apart(deadline)

    def _reach(self, deadline: float) -> Steps[None]:
        self.open = self._dirty = False
        yield Open(min(_left(deadline, self._clock), self._connect_timeout))
        self.open = True
        if not self._endpoint.hello:
            return
        deadline = min(deadline, self._clock() + self._connect_timeout)
        yield Send(self._endpoint.hello, deadline)
        line = b""
        while b"\n" not in line:
            data = yield Receive(deadline)
            line += data
            if not data or len(line) > _HELLO_MAX or not b"OK ".startswith(line[:3]):
                raise Lost(
                    f"{self._endpoint.url}: no port was opened ({line[:_HELLO_MAX]!r} instead of OK); "
                    "see that virtagentd listens on that vsock port"
                )

    def _sync(self, deadline: float) -> Steps[bool]:
        """Skip everything old on the stream; return whether the other end speaks only XML-RPC."""
        self._dirty = True
        number = secrets.randbits(31)
        sync = qga.Sync(number, self._reply_max)
        ended = False
        yield Send(sync.request, deadline)
        try:
            while not sync.receive((yield Receive(deadline))):
                if sync.http and self._known is Speech.UNKNOWN:
                    deadline = min(deadline, self._clock() + HTTP_SECONDS)
        except (Lost, OSError):
            ended = True
            if not sync.http or self._known is not Speech.UNKNOWN:
                self.open = False
                raise
        self._dirty = ended
        return ended

    def _tell_apart(self, deadline: float) -> Steps[None]:
        """Find out whether this is a virtagent or a stock qemu-ga; that changes nothing in either."""
        try:
            found = yield from self._exchange("guest-info", (), self._reply_max, deadline)
        except Fault:
            found = None  # its configuration blocks guest-info
        match found:
            case {"supported_commands": list(commands)}:
                names = [c.get("name") for c in commands if isinstance(c, dict)]
                self.stock = not any(isinstance(name, str) and name.startswith("va.") for name in names)
            case None:
                try:
                    yield from self._exchange("va.ping", (), self._reply_max, deadline)
                    self.stock = False
                except Fault:
                    self.stock = not self._named  # a virtagent, whose configuration blocks the command
            case _:
                raise BadReply("guest-info answered no list of commands; see what the URL names")


def _as_it_is(method: str, params: Sequence[Any], ask: Ask) -> Steps[Any]:
    return (yield from ask(method, *params))


def _left(deadline: float, clock: Callable[[], float]) -> float:
    left = deadline - clock()
    if left <= 0:
        raise TimeoutError
    return left
