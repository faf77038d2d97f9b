"""HTTP/1.1 around XML-RPC, the server's side of one message: bytes to Request, value or Fault to bytes.

h11 does HTTP, with one connection object a message, so that a newer request can be read while an older one is
unanswered. A whole POST gets HTTP 200, with the result or a fault, and the connection goes on. Any other status means
that the bytes are not such a message; every status but 405 ends the connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import h11

from ..api.errors import Code, Fault
from .messages import Limits, Refused, Request
from .xmlrpc import CallReader, dump_fault, dump_reply, excerpt

TAG_HEADER = "X-Virtagent-Client-Tag"
TAG_MAX = 256
DISCARD_MAX = 64 << 20
"""A body over the limit, but not over this, is read and thrown away, so that the connection can go on."""

SLICE = 16 << 10
"""Bytes of the body that are read as XML in one go, as they come: a long body costs no turn of the loop much."""

_REASON = {
    200: "OK",
    400: "Bad Request",
    405: "Method Not Allowed",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
}
_CONTENT_TYPES = ("", "text/xml", "application/xml")


class Message:
    """One HTTP request and its response: a `session.Message`."""

    def __init__(self, token: int, limits: Limits, write: Callable[[bytes], None]) -> None:
        self.tag: str | None = None
        self.last = False
        self.resets = self.in_turn = False
        self.waits = True
        self.size = 0
        self.skip: re.Pattern[bytes] | None = None
        self._token = token
        self._limits = limits
        self._write = write
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header - 1)
        self._body = bytearray()  # what was not read as XML yet
        self._body_size = 0
        self._reader = CallReader(limits.nesting)
        self._wrong: Fault | None = None  # what is wrong with the XML
        self._status = 200
        self._refusal: Fault | None = None

    @property
    def held(self) -> int:
        """Return how many bytes of the half message are kept."""
        return self._body_size if self._refusal is None and self._wrong is None else 0

    def read(self, source: bytearray) -> Request | Refused | None:
        """Take the bytes of the message off the front of `source`; return None if more are needed."""
        try:
            while source:
                if self._feed(source):
                    return self._whole()
        except h11.RemoteProtocolError as error:
            self._status = error.error_status_hint
            return self.break_off(self._protocol_fault(error))
        return None

    def break_off(self, fault: Fault) -> Refused:
        """Give up the half message with `fault`; it is the last one."""
        self.last = True
        if self._status == 200:
            self._status = 400
        return Refused(fault.code, fault.text)

    def reply(self, value: Any) -> None:
        """Send `value`, or fault INTERNAL if XML-RPC has no form for it."""
        try:
            body = dump_reply(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            body = dump_fault(Fault(Code.INTERNAL, f"the reply cannot be sent as XML-RPC: {error}"))
        self._send(body)

    def fault(self, fault: Fault) -> None:
        """Send `fault`."""
        self._send(dump_fault(fault))

    def _feed(self, source: bytearray) -> bool:
        """Give h11 the next few bytes of `source`; return whether the message is whole."""
        # Never more than the limit leaves: else it would depend on how the bytes were cut whether they are refused.
        piece = bytes(source[: self._limits.header - len(self._http.trailing_data[0])])
        self._http.receive_data(piece)
        while (event := self._http.next_event()) is not h11.NEED_DATA:
            match event:
                case h11.Request():
                    self._head(event)
                case h11.Data():
                    self._take(event.data)
                case h11.EndOfMessage():
                    del source[: len(piece) - len(self._http.trailing_data[0])]
                    return True
                case _:
                    raise AssertionError(event)
        del source[: len(piece)]
        return False

    def _head(self, head: h11.Request) -> None:
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
        self.tag = headers.get(TAG_HEADER.lower()) or None
        content_type = headers.get("content-type", "")
        encoding = headers.get("content-encoding", "identity")
        if head.method != b"POST":
            self._status = 405
            self._refusal = Fault(Code.REQUEST, f"HTTP {head.method.decode('ascii')}: XML-RPC is POST")
        elif len(self.tag or "") > TAG_MAX:
            self._refusal = Fault(Code.REQUEST, f"{TAG_HEADER} is longer than {TAG_MAX} bytes")
        elif content_type.partition(";")[0].strip().lower() not in _CONTENT_TYPES:
            self._refusal = Fault(Code.REQUEST, f"Content-Type {excerpt(content_type)}: XML-RPC is text/xml")
        elif encoding.lower() != "identity":
            self._refusal = Fault(Code.REQUEST, f"Content-Encoding {excerpt(encoding)}: the body must be plain")
        if "transfer-encoding" not in headers:
            self._check_size(int(headers.get("content-length", 0)))
        if self._http.client_is_waiting_for_100_continue:
            self._write(self._http.send(h11.InformationalResponse(status_code=100, reason="Continue", headers=[])))

    def _take(self, data: bytes) -> None:
        self._body_size += len(data)
        self._check_size(self._body_size)
        if self._refusal is None and self._wrong is None:
            self._body += data
            while len(self._body) >= SLICE:
                self._read_xml(self._body[:SLICE])
                del self._body[:SLICE]

    def _read_xml(self, piece: bytearray) -> None:
        """Read on; after something wrong no more is read."""
        if self._wrong is None:
            try:
                self._reader.feed(piece)
            except Fault as fault:
                self._wrong = fault

    def _check_size(self, size: int) -> None:
        if size > max(DISCARD_MAX, self._limits.body):
            raise h11.RemoteProtocolError("body too long", error_status_hint=413)
        if size > self._limits.body and self._refusal is None:
            self._refusal = Fault(Code.REQUEST, f"the body is over the limit of {self._limits.body} bytes")

    def _whole(self) -> Request | Refused:
        self.last = self._http.their_state is h11.MUST_CLOSE
        try:
            if self._refusal is not None:
                raise self._refusal
            self._read_xml(self._body)
            self._body = bytearray()
            if self._wrong is not None:
                raise self._wrong
            method, params = self._reader.close()
        except Fault as fault:
            return Refused(fault.code, fault.text)
        return Request(self._token, method, params, self.tag)

    def _protocol_fault(self, error: h11.RemoteProtocolError) -> Fault:
        match error.error_status_hint:
            case 413:
                return Fault(Code.REQUEST, f"the body is far over the limit of {self._limits.body} bytes")
            case 431:
                return Fault(Code.REQUEST, f"the header is over the limit of {self._limits.header} bytes")
            case _:
                # Not in h11's words: what they quote depends on how the bytes were cut, and may be long.
                return Fault(Code.PARSE, f"this is not HTTP: {str(error).partition(': bytearray(')[0]}")

    def _send(self, body: list[bytes]) -> None:
        headers = [
            ("Server", "virtagent"),
            ("Content-Type", "text/xml"),
            ("Content-Length", str(sum(map(len, body)))),
        ]
        if self.tag is not None:
            headers.append((TAG_HEADER, self.tag))
        if self._status == 405:
            headers.append(("Allow", "POST"))
        if self.last:
            headers.append(("Connection", "close"))
        response = h11.Response(
            status_code=self._status,
            reason=_REASON[self._status],
            headers=[(name.encode("ascii"), value.encode("latin-1")) for name, value in headers],
        )
        self._write(b"".join([self._http.send(response), *body]))
