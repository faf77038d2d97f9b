"""The host's side of XML-RPC over HTTP/1.1: a call to bytes, bytes to a reply. No I/O and no clock.

The guest is not trusted. A reply is parsed as it comes in, so that the caller's time-out also bounds what an endless
reply costs. Its bytes and its nesting are bounded, and only some types are accepted; everything else ends in BadReply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import h11

from ..agent.api.errors import Fault
from ..agent.wire.messages import Limits
from ..agent.wire.xmlrpc import ReplyReader, dump_call
from . import sendable
from .errors import BadReply, Lost

REPLY_MAX = 64 << 20
_HEADER_MAX = 64 << 10
_LOOK = "look at the agent's log in the guest"
_TAG = b"X-virtagent-client-tag"


@dataclass(frozen=True, slots=True)
class Reply:
    """What the agent returned: only str, int, float, bool, bytes, list, and dict with str keys."""

    value: Any


class Exchange:
    """One call on a stream: send `request`, give what comes back to `receive` until it returns the reply.

    Replies with the tag of another call are skipped: answers to calls that were given up may still come.
    """

    def __init__(self, method: str, params: Sequence[Any], *, tag: str, reply_max: int = REPLY_MAX) -> None:
        """Make the request; raise Unsendable if a parameter cannot be sent as XML-RPC."""
        self._body = sendable.dumped(sendable.XML, [method, *params], lambda: dump_call(method, params))
        self._tag = tag.encode("ascii")
        self._reply_max = self._left = reply_max
        self.begun = False
        self.reusable = False
        self.request = self._expect()

    def _expect(self) -> bytes:
        """Get ready for the next reply on the stream; return the request that it may answer."""
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

        Raises Fault if the reply is a fault, BadReply or Lost if no reply can come. Afterwards `reusable` says
        whether the stream can carry another call.
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
        """Parse what has come of a reply; return whether it is whole."""
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
    """The XML of one reply, parsed as it comes in."""

    def __init__(self) -> None:
        self._reader = ReplyReader(Limits().nesting)
        self._rubbish = ""

    def feed(self, data: bytes) -> None:
        """Parse more; after rubbish the rest is skipped, since the HTTP status may explain it."""
        if not self._rubbish:
            try:
                self._reader.feed(data)
            except Fault as fault:
                self._rubbish = fault.text

    def reply(self, status: int) -> Reply:
        """Return the reply; raise Fault or BadReply. `status` is that of HTTP: only 200 carries a value."""
        found = None
        if not self._rubbish:
            try:
                found = self._reader.close()
            except Fault as fault:
                self._rubbish = fault.text
        if isinstance(found, Fault):
            raise found
        if status != 200:
            raise BadReply(f"the agent answered HTTP status {status}; see that the URL names a virtagentd")
        if self._rubbish:
            raise BadReply(f"the reply is not XML-RPC ({self._rubbish[:200]}); {_LOOK}")
        return Reply(found)
