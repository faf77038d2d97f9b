"""The host's side of the QEMU guest agent protocol: a call to bytes, bytes to a reply. No I/O and no clock.

The guest is not trusted. The bytes of a line, its nesting and the number of its values are bounded before it is parsed;
everything that is not an answer ends in BadReply. Each request has an `id`, and answers to other requests are skipped,
so late and duplicate replies do no harm. `Sync` finds the place on a stream where nothing old can come any more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..agent.api.errors import Code, Fault, reported_by_other
from ..agent.wire import json_values
from ..agent.wire.messages import Limits
from ..agent.wire.qmp import OURS
from . import sendable
from .errors import BadReply, Lost, Unsendable
from .xmlrpc import REPLY_MAX, Reply

VALUES_MAX = 1 << 20
"""Values in a reply; each may take a hundred bytes of memory, however short it is on the wire."""
_NESTING = Limits().nesting + 2  # of the agent's value, and of the reply around it
_ENDS = re.compile(rb"[\n\xff]")
_SYNC_LINE_MAX = 1024
_LOOK = "look at the agent's log in the guest"
_SIGN = re.compile(rb"[][{},\"]")
_IN_STRING = re.compile(rb'(?:[^"\\]+|\\.){0,4096}', re.DOTALL)  # bounded, since each repetition takes memory


class Exchange:
    """One call on a stream: send `request`, then give what comes back to `receive` until it returns the reply."""

    def __init__(self, method: str, params: Sequence[Any], *, tag: str, reply_max: int = REPLY_MAX) -> None:
        """Make the request; raise Unsendable if a parameter cannot be sent as JSON."""
        message: dict[str, Any] = {"execute": method, "id": tag}
        if method.startswith(OURS):
            message["arguments"] = list(params)
        elif len(params) == 1 and isinstance(params[0], dict):
            message["arguments"] = params[0]
        elif params:
            raise Unsendable(f"{method} takes its arguments by name: one struct")
        self.request = _dump(message)
        self._method = method
        self._tag = tag
        self._reply_max = self._left = reply_max
        self._line = bytearray()
        self.begun = False
        self.reusable = False
        self.ended = False
        self.ours = False
        """Whether the reply is an error in the form that only virtagent has."""

    def receive(self, data: bytes) -> Reply | None:
        """Take bytes of the stream (b"": it ended); return the reply when it is whole.

        Raises Fault if the reply is a fault, BadReply or Lost if no reply can come. Afterwards `reusable` says whether
        the stream can carry another call as it is, `ended` whether it cannot even be resynchronised.
        """
        if not data:
            self.ended = True
            if not self.begun:
                raise Lost("the agent closed the connection without an answer; look at its log, then call again")
            raise BadReply(f"the reply breaks off; {_LOOK}")
        self.begun = True
        self._left -= len(data)
        if self._left < 0:
            self.ended = True
            raise BadReply(f"the reply is over {self._reply_max} bytes; {_LOOK}")
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            self._line += data[at:end]
            line, self._line = bytes(self._line), bytearray()
            at = end + 1
            if (found := self._answer(line)) is not None:
                self.reusable = at == len(data)
                if isinstance(found, Reply):
                    return found
                raise found
        self._line += data[at:]
        return None

    def _answer(self, line: bytes) -> Reply | Fault | None:
        """Return the answer to this call, None if the line answers another call."""
        line = line[line.rfind(b"\xff") + 1 :].strip()
        if not line:
            return None
        found = load(line)
        if not isinstance(found, dict) or not {"return", "error"} & found.keys():
            raise BadReply(f"the reply is JSON, but neither a return nor an error; {_LOOK}")
        if "error" in found:
            # An error without an id is about a request that the agent could not read, and nothing older can come.
            return self._fault(found["error"]) if found.get("id", self._tag) == self._tag else None
        return Reply(found["return"]) if found.get("id") == self._tag else None

    def _fault(self, error: Any) -> Fault:
        match error:
            case {"desc": str(text), "code": int(number)}:
                self.ours = True
                return reported_by_other(number, text)
            case {"class": "CommandNotFound", "desc": str(text)}:
                if "frozen state" in text:
                    wrong = self._method.startswith("guest-fsfreeze-")
                    return Fault(Code.WRONG_STATE if wrong else Code.REFUSED_WHILE_FROZEN, text)
                return Fault(Code.BLOCKED if "disabled" in text else Code.METHOD, text)
            case {"desc": str(text)}:
                return Fault(Code.FAILED, text)
        raise BadReply(f"the reply is an error without a text; {_LOOK}")


class Sync:
    """A search on a stream for the answer to guest-sync-delimited with `number`, after which nothing old comes.

    A refusal counts as the answer: the agent's configuration may block the command.
    """

    def __init__(self, number: int, skip_max: int = REPLY_MAX) -> None:
        # 0xFF ends a message that the agent has half read.
        self.request = b"\xff" + _dump({"execute": "guest-sync-delimited", "arguments": {"id": number}, "id": number})
        self._number = number
        self._left = self._skip_max = skip_max
        self._head = b""
        self._line = b""
        self._too_long = False
        self._delimited = False
        self.http = False
        """Whether the stream began like one of an agent that speaks only XML-RPC."""

    def receive(self, data: bytes) -> bool:
        """Take bytes of the stream (b"": it ended); return whether the answer has come.

        Raises Lost if the stream ends before that, BadReply if too much would have to be skipped.
        """
        if not data:
            raise Lost("the agent closed the connection without an answer; look at its log, then call again")
        self._left -= len(data)
        if self._left < 0:
            raise BadReply(f"over {self._skip_max} bytes came, none of which answers the sync; {_LOOK}")
        if len(self._head) < 5:
            self._head += data[:5]
            self.http = self._head.startswith(b"HTTP/")
        at = 0
        found = False
        for sign in _ENDS.finditer(data):
            self._keep(data[at : sign.start()])
            at = sign.end()
            found = sign[0] == b"\n" and self._answers()
            self._line, self._too_long, self._delimited = b"", False, sign[0] == b"\xff"
        self._keep(data[at:])
        return found and at == len(data)

    def _keep(self, part: bytes) -> None:
        self._too_long = self._too_long or len(self._line) + len(part) > _SYNC_LINE_MAX
        self._line = b"" if self._too_long else self._line + part

    def _answers(self) -> bool:
        """Return whether the line is the answer or a refusal."""
        try:
            found = load(self._line)
        except BadReply:
            return False
        match found:
            case {"return": int(number), "id": int(tag)}:
                return self._delimited and number == tag == self._number
            case {"return": int(number)}:
                return self._delimited and number == self._number
            case {"error": _, "id": int(tag)}:
                return tag == self._number
        return False


def load(line: bytes) -> Any:
    """Return the value of a line of JSON; raise BadReply if it is not JSON, too deep, or has too many values."""
    opened = line.count(b"{") + line.count(b"[")
    if opened > _NESTING or opened + line.count(b",") > VALUES_MAX:
        _measure(line)  # some may stand in strings
    try:
        return json_values.load(line, lone_surrogates=True)
    except Fault as fault:
        raise BadReply(f"the reply is not JSON ({fault.text[:200]}); {_LOOK}") from None


def _measure(line: bytes) -> None:
    depth = values = at = 0
    while sign := _SIGN.search(line, at):
        at = sign.end()
        match sign[0]:
            case b'"':
                at = _string_end(line, at)
            case b"{" | b"[":
                depth += 1
                values += 1
            case b"}" | b"]":
                depth -= 1
            case b",":
                values += 1
        if depth > _NESTING:
            raise BadReply(f"the reply nests deeper than {_NESTING}; {_LOOK}")
        if values > VALUES_MAX:
            raise BadReply(f"the reply holds over {VALUES_MAX} values; {_LOOK}")


def _string_end(line: bytes, at: int) -> int:
    """Return the end of the string that is open at `at`, or the end of the line."""
    while (some := _IN_STRING.match(line, at)) and some.end() > at:
        at = some.end()
    return at + 1


def _dump(message: dict[str, Any]) -> bytes:
    return sendable.dumped(sendable.JSON, [message], lambda: json_values.dump(message))
