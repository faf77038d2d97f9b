"""One conversation on one byte stream: which protocol a message speaks, and which reply may still be sent.

The channel hands in what it read (`receive_data`), takes one `next_event` at a time and writes what is `pending`:

    stream.receive_data(data)
    while (event := stream.next_event()) is not None:
        ...                                     # perhaps stream.reply(event.token, value), at once or later
    stream.wrote(os.write(fd, stream.pending()))

A message is parsed only when it is asked for, so a request that is answered on the spot is never abandoned by the one
behind it, and a channel whose peer does not read its replies stops asking. No I/O, no clock.

The rule of replies, for every protocol: a newer untagged message means that the host has given up on the older
untagged request; that reply is dropped, never sent late. So at most one untagged request is open, and untagged replies
leave in the order of their requests. Tagged requests are answered as they finish, and nothing gives up on them.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import Code, Fault
from . import http
from .messages import Abandoned, Incoming, Limits, Refused, Request


class Message(Protocol):
    """One message on its way in, then the way out for its reply; every protocol has its own.

    `tag` is known, and `last` (nothing can follow on this stream) true if it is, once `read` or `break_off` returned
    something. What is to be sent goes to the `write` that the message was made with.
    """

    tag: str | None
    last: bool

    def read(self, source: bytearray) -> Request | Refused | None:
        """Take the message's bytes off the front of `source`; None means that all was taken and more is needed."""

    def break_off(self, fault: Fault) -> Refused:
        """Answer the half message with `fault`; it is the last."""

    def reply(self, value: Any) -> None:
        """Send `value`, or fault INTERNAL if the protocol has no form for it."""

    def fault(self, fault: Fault) -> None:
        """Send `fault`."""


Begin = Callable[[int, Limits, Callable[[bytes], None]], Message]

PROTOCOLS: dict[bytes, Begin] = {
    b"P": http.Message,
}

# 0xFF is the sentinel of 2011. An empty line before a request is to be ignored (RFC 9112, 2.2), and a host may end a
# JSON request with one; neither is half a message.
_BETWEEN_MESSAGES = re.compile(rb"[ \t\r\n\xff]*")
_NOTHING = memoryview(b"")
_DEFAULT = Limits()


class Stream:
    """The state of one conversation: the message being read, the requests not yet answered, the bytes not yet written.

    A token is a small int, never used twice, not even after `reset`.
    """

    def __init__(self, limits: Limits = _DEFAULT) -> None:
        self._limits = limits
        self._tokens = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything, what was not written too; replies to older requests are dropped.

        For a character device, which cannot be closed, when `closing` or when the host's end was closed.
        """
        self._input = bytearray()
        self._reading: Message | None = None
        self._ended = False
        self._open: dict[int, Message] = {}
        self._events: deque[Incoming] = deque()
        self._output: deque[memoryview] = deque()
        self._output_size = 0

    def receive_data(self, data: bytes) -> None:
        """Take bytes that were read from the channel, any number; after the last message they are dropped."""
        if not self._ended:
            self._input += data

    def next_event(self) -> Incoming | None:
        """Return what came next, or None when more bytes are needed."""
        while self._input and not self._events:
            self._read()
        return self._events.popleft() if self._events else None

    def expire(self) -> None:
        """Answer a half message with fault REQUEST and end the stream: the rest of it has not come in time."""
        if self._reading is not None:
            self._came(self._reading, self._reading.break_off(Fault(Code.REQUEST, "half a message, and no more came")))

    def reply(self, token: int, value: Any) -> None:
        """Answer a request with `value` (str, bool, int, float, bytes, list, tuple, dict with str keys).

        Dropped if the request was abandoned. Raises KeyError for a token that was never given out.
        """
        if (message := self._answered(token)) is not None:
            message.reply(value)

    def fault(self, token: int, fault: Fault) -> None:
        """Answer a request with `fault`; dropped, or KeyError, as with `reply`."""
        if (message := self._answered(token)) is not None:
            message.fault(fault)

    @property
    def mid_message(self) -> bool:
        """Whether half a message has come; what stands between messages is none."""
        return self._reading is not None

    @property
    def closing(self) -> bool:
        """Whether the channel is to be closed once the output is written: nothing more is read or left to answer."""
        return self._ended and not self._open

    @property
    def output_size(self) -> int:
        """Bytes not yet written."""
        return self._output_size

    def pending(self) -> memoryview:
        """Return the next bytes to write: the rest of the oldest reply, uncopied; empty if there is none."""
        return self._output[0] if self._output else _NOTHING

    def wrote(self, count: int) -> None:
        """Take off the first `count` bytes of `pending`, which the channel has written."""
        if not count:
            return
        rest = self._output.popleft()[count:]
        self._output_size -= count
        if rest:
            self._output.appendleft(rest)

    def _read(self) -> None:
        if self._reading is None:
            if between := _BETWEEN_MESSAGES.match(self._input):
                del self._input[: between.end()]
            if not self._input:
                return
            self._begin(bytes(self._input[:1]))
        elif (event := self._reading.read(self._input)) is not None:
            self._came(self._reading, event)

    def _begin(self, first: bytes) -> None:
        begin = PROTOCOLS.get(first)
        self._reading = (begin or http.Message)(self._tokens, self._limits, self._write)
        self._tokens += 1
        if begin is None:
            stray = Fault(Code.PARSE, f"no protocol spoken here begins a message with the byte 0x{first.hex()}")
            self._came(self._reading, self._reading.break_off(stray))

    def _came(self, message: Message, event: Request | Refused) -> None:
        self._reading = None
        if message.tag is None:
            for token in [token for token, older in self._open.items() if older.tag is None]:
                del self._open[token]
                self._events.append(Abandoned(token))
        if isinstance(event, Request):
            self._open[event.token] = message
        self._events.append(event)
        if message.last:
            self._ended = True
            self._input.clear()

    def _answered(self, token: int) -> Message | None:
        if not 0 <= token < self._tokens:
            raise KeyError(token)
        return self._open.pop(token, None)

    def _write(self, data: bytes) -> None:
        self._output.append(memoryview(data))
        self._output_size += len(data)
