"""The protocol stream of one connection: which protocol a message is in, and which reply may still be sent.

The connection gives it what was read (`receive_data`), takes one `next_event` at a time and writes what is `pending`:

    session.receive_data(data)
    while (event := session.next_event()) is not None:
        ...                                     # perhaps session.reply(event.token, value), now or later
    session.wrote(os.write(fd, session.pending()))

A message is parsed only when it is asked for. So a request that is answered on the spot is never abandoned because of
the one behind it, and a connection whose peer does not read its replies can stop asking. No I/O, no clock.

The rule of replies (ADR 0019). A host that sends another untagged request has given up on an older untagged one that
waits for a freeze or thaw, or that came over HTTP: that reply is dropped, and never sent late. JSON requests may be
sent in one go, since qemu-ga does one after another: an untagged one behind an untagged one that will be done soon
waits for its turn, and so does an error. A sync means that the host gives up on everything older, tagged or not; an
HTTP message, on everything older and untagged. What still waited for its turn then is done, unheard. Tagged requests
are answered as they finish.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from ..api.errors import Code, Fault
from ..api.structs import replace
from . import http, qmp
from .messages import Abandoned, Incoming, Limits, Refused, Request


class Message(Protocol):
    """One message on its way in, then its reply on the way out. Each protocol has its own class.

    Known once `read` or `break_off` has returned something: `tag`; `last`: nothing can follow on this connection;
    `size` in bytes; `resets`: it is a sync; `waits`: it may wait for a freeze; `in_turn`: it does not give up on an
    older one; `skip`: which of the bytes that follow belong to it. The reply goes to the `write` that the message was
    made with.
    """

    tag: str | None
    last: bool
    size: int
    resets: bool
    waits: bool
    in_turn: bool
    skip: re.Pattern[bytes] | None

    @property
    def held(self) -> int:
        """How many bytes of the half message are stored."""

    def read(self, source: bytearray) -> Request | Refused | None:
        """Take the bytes of the message off the front of `source`; return None if more are needed."""

    def break_off(self, fault: Fault) -> Refused:
        """Give up the half message with `fault`."""

    def reply(self, value: Any) -> None:
        """Send `value`, or fault INTERNAL if the protocol has no form for it."""

    def fault(self, fault: Fault) -> None:
        """Send `fault`."""


# Before a P, 0xFF is the sentinel of 2011; for JSON it is a reset, which is answered with an error. An empty line
# before a request is ignored (RFC 9112, 2.2), and may end a JSON request; neither is half a message.
_SPACE = re.compile(rb"[ \t\r\n]*")
_SENTINEL = re.compile(rb"[ \t\r\n\xff]*")
_SENTINEL_MAX = 256  # sentinels with nothing behind them
WAITING_MAX = 64  # messages that wait for their turn; then no more are parsed
WAITING_BYTES = 1 << 20  # of all of them; the last may go over it
_NOTHING = memoryview(b"")
_DEFAULT = Limits()


class Session:
    """One session: the message that is being read, the requests not yet answered, the bytes not yet written.

    A token is a small int, never used twice, not even after `reset`.
    """

    def __init__(self, limits: Limits = _DEFAULT) -> None:
        self._limits = limits
        self._tokens = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything, also what was not written; replies to older requests are dropped.

        This is for a character device, which cannot be closed, when `closing` or when the host's end was closed.
        """
        self._input = bytearray()
        self._reading: Message | None = None
        self._skip: re.Pattern[bytes] | None = None
        self._ended = False
        self._waiting: deque[tuple[Message, Request | Refused]] = deque()
        self._open: dict[int, Message] = {}
        self._events: deque[Incoming] = deque()
        self._output: deque[memoryview] = deque()
        self._output_size = 0

    def receive_data(self, data: bytes) -> None:
        """Take any number of bytes that were read; after the last message they are dropped."""
        if not self._ended:
            self._input += data

    def next_event(self) -> Incoming | None:
        """Return what came next; None if more bytes are needed."""
        while not self._events and (self._take_turn() or (self._input and not self.full and self._read())):
            pass
        return self._events.popleft() if self._events else None

    def expire(self) -> None:
        """Answer a half message with fault REQUEST: the rest has not come in time."""
        if self._reading is not None:
            self._came(self._reading, self._reading.break_off(Fault(Code.REQUEST, "half a message, and no more came")))

    def refuse(self, fault: Fault) -> None:
        """Answer a half message with `fault`; nothing follows."""
        if self._reading is not None:
            event = self._reading.break_off(fault)
            self._reading.last = True
            self._came(self._reading, event)

    def reply(self, token: int, value: Any) -> None:
        """Answer a request with `value` (str, bool, int, float, bytes, list, tuple, dict with str keys).

        The reply is dropped if the request was abandoned. Raises KeyError for a token that was never given out.
        """
        if (message := self._answered(token)) is not None:
            message.reply(value)

    def fault(self, token: int, fault: Fault) -> None:
        """Answer a request with `fault`; dropped, or KeyError, as in `reply`."""
        if (message := self._answered(token)) is not None:
            message.fault(fault)

    @property
    def mid_message(self) -> bool:
        """Whether half a message has come; white space between messages does not count."""
        return self._reading is not None

    @property
    def closing(self) -> bool:
        """Whether the connection is to be closed once the output is written: there is nothing to read or answer."""
        return self._ended and not self._open and not self._waiting

    @property
    def owing(self) -> bool:
        """Whether a reply is still to be made, or to be written."""
        return bool(self._open or self._waiting or self._events or self._output)

    def give_up(self) -> list[Incoming]:
        """Return the requests that were not begun yet, as unheard: the host is gone."""
        self._ended = True
        self._input.clear()
        while self._waiting:
            self._give_up(*self._waiting.popleft())
        events, self._events = list(self._events), deque()
        return [replace(event, unheard=True) if isinstance(event, Request) else event for event in events]

    @property
    def full(self) -> bool:
        """Whether so many messages wait for their turn that no more are to be read."""
        return len(self._waiting) >= WAITING_MAX or sum(m.size for m, _ in self._waiting) > WAITING_BYTES

    @property
    def half_size(self) -> int:
        """How many bytes the half message has."""
        return self._reading.held if self._reading is not None else 0

    @property
    def backlog(self) -> int:
        """Bytes that have come and were not looked at yet."""
        return len(self._input)

    @property
    def input_size(self) -> int:
        """How many bytes have come that were not given out as a request yet."""
        return len(self._input) + self.half_size + sum(message.size for message, _ in self._waiting)

    @property
    def output_size(self) -> int:
        """How many bytes are not written yet."""
        return self._output_size

    def pending(self) -> memoryview:
        """Return the next bytes to write, without a copy: the rest of the oldest reply; empty if there is no reply."""
        return self._output[0] if self._output else _NOTHING

    def wrote(self, count: int) -> None:
        """Take off the first `count` bytes of `pending`, which were written."""
        if not count:
            return
        rest = self._output.popleft()[count:]
        self._output_size -= count
        if rest:
            self._output.appendleft(rest)

    def _read(self) -> bool:
        """Read some of the input; return whether there may be more to read now."""
        if self._reading is None and not self._begin():
            return False
        assert self._reading is not None
        if (event := self._reading.read(self._input)) is not None:
            self._came(self._reading, event)
        return True

    def _begin(self) -> bool:
        """Begin a message if the next byte is there and tells the protocol; return whether it does."""
        if self._skip is not None:
            del self._input[: _length(self._skip, self._input)]
            if not self._input:
                return False
            self._skip = None
        del self._input[: _length(_SPACE, self._input)]
        if not self._input:
            return False
        size = _length(_SENTINEL, self._input)
        if size == len(self._input) < _SENTINEL_MAX:
            return False
        begin: Callable[[int, Limits, Callable[[bytes], None]], Message] = qmp.Message
        if self._input[size : size + 1] == b"P":
            del self._input[:size]
            begin = http.Message
        self._reading = begin(self._tokens, self._limits, self._write)
        self._tokens += 1
        return True

    def _came(self, message: Message, event: Request | Refused) -> None:
        self._reading, self._skip = None, message.skip
        if message.last:
            self._ended = True
            self._input.clear()
        if message.resets or (message.tag is None and not message.in_turn):  # ADR 0019: what a newer one means
            while self._waiting:
                self._give_up(*self._waiting.popleft())
            self._abandon([token for token, older in self._open.items() if message.resets or older.tag is None])
            self._release(message, event)
        elif message.tag is not None:
            self._release(message, event)
        else:
            self._waiting.append((message, event))

    def _take_turn(self) -> bool:
        """Release the next message if it is its turn: a request, but not errors alone, also while a freeze waits.

        One at a time, so that what is answered on the spot is never given up because of what follows it.
        """
        untagged = [token for token, older in self._open.items() if older.tag is None]
        requests = any(isinstance(event, Request) for _, event in self._waiting)
        if not self._waiting or (untagged and not requests) or not all(self._open[token].waits for token in untagged):
            return False
        message, event = self._waiting.popleft()
        if isinstance(event, Request):
            self._abandon(untagged)
        self._release(message, event)
        return True

    def _abandon(self, tokens: list[int]) -> None:
        for token in tokens:
            del self._open[token]
            self._events.append(Abandoned(token))

    def _give_up(self, message: Message, event: Request | Refused) -> None:
        """Release a request as unheard, since nobody waits for it any more; an error is still sent."""
        if isinstance(event, Request):
            self._events.append(replace(event, unheard=True))
        else:
            self._release(message, event)

    def _release(self, message: Message, event: Request | Refused) -> None:
        if isinstance(event, Request):
            self._open[event.token] = message
        else:
            message.fault(Fault(Code(event.code), event.text))
        self._events.append(event)

    def _answered(self, token: int) -> Message | None:
        if not 0 <= token < self._tokens:
            raise KeyError(token)
        return self._open.pop(token, None)

    def _write(self, data: bytes) -> None:
        self._output.append(memoryview(data))
        self._output_size += len(data)


def _length(pattern: re.Pattern[bytes], data: bytearray) -> int:
    match = pattern.match(data)
    return match.end() if match else 0
