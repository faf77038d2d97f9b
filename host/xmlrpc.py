"""XML-RPC over HTTP/1.1, the host's side: a call to bytes, bytes to a reply. No I/O and no clock.

The guest is not trusted. A reply is parsed as it comes in, so that the caller's time-out also bounds what an
endless one costs; its bytes, its nesting and its types are bounded; whatever else it is ends in BadReply.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast
from xml.parsers.expat import ExpatError
from xmlrpc import client as xmlrpc

import h11
from defusedxml.xmlrpc import DefusedExpatParser

from ..agent.api.errors import Code, Fault
from ..agent.wire.messages import Limits
from .errors import BadReply, Lost, Unsendable

REPLY_MAX = 64 << 20
_HEADER_MAX = 64 << 10
_LOOK = "look at the agent's log in the guest"
_TAG = b"X-virtagent-client-tag"
_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_RUBBISH = (ExpatError, xmlrpc.ResponseError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the agent returned: str, int, float, bool, bytes, list, or dict with str keys; no other type."""

    value: Any


class Exchange:
    """One call on a stream: send `request`, give what comes back to `receive` until it returns the reply.

    Replies that carry the tag of another call are skipped: a stream may still hold answers to calls that were given up.
    """

    def __init__(self, method: str, params: Sequence[Any], *, tag: str, reply_max: int = REPLY_MAX) -> None:
        """Raise Unsendable if a parameter cannot travel as XML-RPC."""
        self._body = xmlrpc.dumps(tuple(_sendable(p) for p in params), _text(method)).encode()
        self._tag = tag.encode("ascii")
        self._reply_max = self._left = reply_max
        self.begun = False
        self.reusable = False
        self.request = self._expect()

    def _expect(self) -> bytes:
        """Make ready for the next reply on the stream; return the request that it may answer."""
        headers = [
            (b"Host", b"virtagent"),
            (b"Content-Type", b"text/xml"),
            (b"Content-Length", b"%d" % len(self._body)),
            (_TAG, self._tag),
        ]
        self._document = _Document()
        self._status = 0
        self._ours = True
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADER_MAX)
        head = self._http.send(h11.Request(method="POST", target="/RPC2", headers=headers))
        return head + self._http.send(h11.Data(data=self._body)) + self._http.send(h11.EndOfMessage())

    def receive(self, data: bytes) -> Reply | None:
        """Take bytes of the stream (none: it ended); return the reply when it is whole.

        Raises Fault if the reply is one, BadReply or Lost if there will be none. Afterwards `reusable` says
        whether the stream may carry another call.
        """
        if not data and not self.begun:
            raise Lost("the agent closed the connection without an answer; look at its log, then call again")
        self.begun = True
        self._left -= len(data)
        if self._left < 0:
            raise BadReply(f"the reply is over {self._reply_max} bytes; {_LOOK}")
        ended = not data
        while True:
            try:
                self._http.receive_data(data)
                whole = self._read()
            except h11.RemoteProtocolError as error:
                what = "breaks off" if ended else f"is not HTTP ({str(error)[:200]})"
                raise BadReply(f"the reply {what}; {_LOOK}") from None
            if not whole:
                return None
            data = self._http.trailing_data[0]
            if self._ours:
                self.reusable = self._http.their_state is h11.DONE and not data
                return self._document.reply(self._status)
            self._expect()
            if not data:
                return None

    def _read(self) -> bool:
        """Parse what has come of a reply; say whether it is whole."""
        while True:
            match self._http.next_event():
                case h11.Response() as head:
                    self._status = head.status_code
                    self._ours = all(value == self._tag for name, value in head.headers if name == _TAG.lower())
                    length = next((int(value) for name, value in head.headers if name == b"content-length"), 0)
                    if length > self._reply_max:
                        raise BadReply(f"the reply announces {length} bytes, over {self._reply_max}; {_LOOK}")
                case h11.Data() as part:
                    self._document.feed(bytes(part.data))
                case h11.EndOfMessage():
                    return True
                case h11.InformationalResponse():
                    pass
                case _:
                    return False


class _Document:
    """The XML of one reply, parsed as it comes."""

    def __init__(self) -> None:
        self._values = _Values(use_builtin_types=True)
        self._parser = DefusedExpatParser(self._values, forbid_dtd=True)
        self._rubbish = ""

    def feed(self, data: bytes) -> None:
        """Parse more; after rubbish the rest is skipped, since the HTTP status may explain it."""
        if not self._rubbish:
            self._try(lambda: self._parser.feed(data))

    def reply(self, status: int) -> Reply:
        """Return the reply; raise Fault or BadReply. `status` is that of HTTP: only 200 carries a value."""
        found: list[Any] = []
        if not self._rubbish:
            self._try(self._parser.close)
        if not self._rubbish:
            self._try(lambda: found.extend(self._values.close()))
        if status != 200:
            raise BadReply(f"the agent answered HTTP status {status}; see that the URL names a virtagentd")
        if self._rubbish or len(found) != 1:
            why = self._rubbish or f"{len(found)} values"
            raise BadReply(f"the reply is not XML-RPC ({why}); {_LOOK}")
        return Reply(found[0])

    def _try(self, step: Callable[[], object]) -> None:
        try:
            step()
        except xmlrpc.Fault as fault:
            raise _fault(fault.faultCode, fault.faultString) from None
        except _RUBBISH as error:
            self._rubbish = f"{type(error).__name__}: {str(error)[:200]}"


def _integer(values: xmlrpc.Unmarshaller, data: str) -> None:
    if len(data) > 20:
        raise ValueError(f"an integer of {len(data)} digits")
    values.append(int(data))
    values._value = False


def _finite(values: xmlrpc.Unmarshaller, data: str) -> None:
    number = float(data)
    if not math.isfinite(number):
        raise ValueError(f"{number} for a number")
    values.append(number)
    values._value = False


def _struct(values: xmlrpc.Unmarshaller, data: str) -> None:
    values.end_struct(data)
    if not all(isinstance(key, str) for key in cast("dict[Any, Any]", values._stack[-1])):
        raise ValueError("a member without a name")


class _Values(xmlrpc.Unmarshaller):
    """The unmarshaller of the standard library, which takes much on trust, made strict."""

    _SILENT = frozenset({"methodResponse", "param", "data", "member"})
    _LEVELS = Limits().nesting * 4  # an array takes the elements array, data and value, a struct takes one less
    _depth = 0

    dispatch = {  # noqa: RUF012
        **{
            tag: xmlrpc.Unmarshaller.dispatch[tag]
            for tag in ("value", "params", "fault", "name", "string", "boolean", "base64", "array")
        },
        "int": _integer,
        "i4": _integer,
        "double": _finite,
        "struct": _struct,
    }

    def start(self, tag: str, attrs: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > self._LEVELS:
            raise ValueError(f"{self._LEVELS} elements inside each other")
        if tag not in self.dispatch and tag not in self._SILENT:
            raise ValueError(f"unknown element <{tag[:40]}>")
        super().start(tag, attrs)

    def end(self, tag: str) -> None:
        self._depth -= 1
        super().end(tag)


def _fault(code: Any, text: Any) -> Exception:
    if not isinstance(code, int) or not isinstance(text, str):
        return BadReply(f"the reply is a fault without a number and a text; {_LOOK}")
    try:
        return Fault(Code(code), text)
    except ValueError:
        return Fault(Code.FAILED, f"{text} (fault {code}, which this client is too old to name)")


def _sendable(value: Any, nesting: int = Limits().nesting) -> Any:
    """Return `value` as XML-RPC can carry it: an int beyond 32 bits becomes a double. Raise Unsendable if it cannot."""
    if nesting < 0:
        raise Unsendable(f"values nest deeper than {Limits().nesting}")
    match value:
        case bool() | float() | bytes():
            return value
        case int():
            return value if -(1 << 31) <= value < 1 << 31 else _double(value)
        case str():
            return _text(value)
        case list() | tuple():
            return [_sendable(item, nesting - 1) for item in value]
        case dict():
            return {_text(key): _sendable(item, nesting - 1) for key, item in value.items()}
        case _:
            raise Unsendable(f"XML-RPC carries no {type(value).__name__}")


def _double(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise Unsendable("an integer is too big even for a double") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or _NOT_XML.search(value):
        raise Unsendable(f"XML carries no {value!r:.80}")
    return value
